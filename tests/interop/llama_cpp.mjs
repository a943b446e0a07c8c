// llama.cpp, through node-llama-cpp: a JSON request on stdin, the answer on stdout.
// {model, texts, prompts, n, rows}: texts to tokenize; token ids to continue greedily by n; rows to give the logits of.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";

const folder = process.argv[2];
const entry = createRequire(folder + "/package.json").resolve("node-llama-cpp");
const { getLlama } = await import(pathToFileURL(entry));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1, skipDownload: true });
const { model: modelPath, texts = [], prompts = [], n = 0, rows = [] } = JSON.parse(readFileSync(0));
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
    contextSize: model.trainContextSize, batchSize: model.trainContextSize, flashAttention: false, threads: 1,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
});
const sequence = context.getSequence();
const answer = { tokens: texts.map((text) => model.tokenize(text)), continued: [], logits: [] };
for (const prompt of prompts) {
    await sequence.clearHistory();
    const found = [];
    for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
        found.push(token);
        if (found.length === n) break;
    }
    answer.continued.push(found);
}
for (const row of rows) {
    await sequence.clearHistory();
    const options = { generateNext: { logits: true, options: { temperature: 0 } } };
    const output = await sequence.controlledEvaluate(row.map((token) => [token, options]));
    answer.logits.push(output.map(({ next }) => {
        const logits = [];
        for (const [token, logit] of next.logits) logits[token] = logit;
        return logits;
    }));
}
process.stdout.write(JSON.stringify(answer), () => process.exit(0));
