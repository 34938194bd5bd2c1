// One measurement of llama.cpp through node-llama-cpp: llama.mjs PACKAGES MODEL THREADS prefill|decode SEQUENCES TOKENS
// Prints {"tokens_per_second": ...} on its last line.
import {pathToFileURL} from "node:url";
import path from "node:path";

const [packages, modelPath, threadText, phase, sequenceText, tokenText] = process.argv.slice(2);
const [threads, sequences, count] = [threadText, sequenceText, tokenText].map(Number);
const entry = path.join(packages, "node_modules", "node-llama-cpp", "dist", "index.js");
const {getLlama} = await import(pathToFileURL(entry).href);

const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, skipDownload: true, logLevel: "error"});
const model = await llama.loadModel({modelPath});
const prompt = Array.from({length: phase === "prefill" ? count : 8}, (_, i) => 1 + i % 300);
const context = await model.createContext({
  sequences, threads, batchSize: 512, contextSize: count + 64});
const all = Array.from({length: sequences}, () => context.getSequence());

let seconds;
if (phase === "prefill") {
  await all[0].evaluateWithoutGeneratingNewTokens(prompt.slice(0, 32));  // touches the weights
  await all[0].clearHistory();
  const begin = performance.now();
  await all[0].evaluateWithoutGeneratingNewTokens(prompt);
  seconds = (performance.now() - begin) / 1000;
} else {
  const streams = all.map((s) => s.evaluate(prompt, {temperature: 0, yieldEogToken: true}));
  await Promise.all(streams.map((s) => s.next()));
  const begin = performance.now();
  await Promise.all(streams.map(async (s) => {
    for (let i = 0; i < count; ++i)
      if ((await s.next()).done) throw new Error("the text ended");
  }));
  seconds = (performance.now() - begin) / 1000;
}
console.log(JSON.stringify({tokens_per_second: (phase === "prefill" ? count : count * sequences) / seconds}));
process.exit(0);
