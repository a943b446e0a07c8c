// llama.cpp, through node-llama-cpp: node llama_cpp.mjs FOLDER REQUESTS ANSWERS, the last two JSON files.
// Each request is {model, texts, prompts, n, rows}: texts to tokenize, token ids to continue greedily by n tokens, and
// token ids after each of which to give the logits.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, requests, answers] = process.argv.slice(2);
const { getLlama } = await import(pathToFileURL(createRequire(`${folder}/package.json`).resolve("node-llama-cpp")));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1, skipDownload: true });

async function answered({ model: modelPath, texts = [], prompts = [], n = 0, rows = [] }) {
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
    await model.dispose();
    return answer;
}

const found = [];
for (const request of JSON.parse(readFileSync(requests))) found.push(await answered(request));
writeFileSync(answers, JSON.stringify(found));
process.exit(0);
