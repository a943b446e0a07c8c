// llama.cpp, through node-llama-cpp: node llama_cpp.mjs FOLDER MODEL THREADS. Each line of the input is a length of
// prompt and a number of tokens to write; a line of the output says that they are written.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [folder, modelPath, threads] = process.argv.slice(2);
const { getLlama } = await import(pathToFileURL(createRequire(`${folder}/package.json`).resolve("node-llama-cpp")));
const n = Number(threads);
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: n, skipDownload: true });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: model.trainContextSize, threads: n });
const sequence = context.getSequence();
for await (const line of createInterface({ input: process.stdin })) {
    const [nPrompt, nNew] = line.split(" ").map(Number);
    await sequence.clearHistory();
    const prompt = Array.from({ length: nPrompt }, (_, token) => token);
    let found = 0;
    for await (const _ of sequence.evaluate(prompt, { temperature: 0.8, topK: 50, yieldEogToken: true })) {
        if (++found === nNew) break;
    }
    console.log(found);
}
process.exit(0);
