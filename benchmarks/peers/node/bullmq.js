// BullMQ for the benchmarks; what it is asked for is described in ../README.md.
//
//   node bullmq.js version
//   node bullmq.js bulk JOBS KIND
//   node bullmq.js one SECONDS IN_FLIGHT
//   node bullmq.js pace PER_SECOND SECONDS LANES
//   node bullmq.js work CONCURRENCY

import { createRequire } from "node:module";
import { openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

// This file stands beside the lock file, the modules in the folder that they were installed into.
const require = createRequire(join(process.env.BENCH_MODULES, "package.json"));
const { Queue, Worker } = require("bullmq");
const { Redis } = require("ioredis");

const QUEUE = "bench";
const BULK = 1_000; // jobs of one call
const BULK_CALLS = 2; // on their way at once
const WARM_UP_MS = 1_000; // not counted
const FAILING = 10; // every so manieth "flaky" job fails the first time that it runs
const TALLY_MS = 5;
const PAYLOAD = "x".repeat(10_000);

// Finished jobs are dropped, as the documentation advises for production. A failed one runs again at once.
const options = { removeOnComplete: true, attempts: 3 };

const connect = () => new Redis(process.env.BENCH_URL, { maxRetriesPerRequest: null });
// Since 1970, in ns: the two clocks differ by a constant, and the second one is fine enough for latencies.
const wallNs = () => BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e6));

function dataOf(kind, number, sentNs) {
  if (kind === "payload") return { text: PAYLOAD };
  if (kind === "flaky") return { number };
  if (kind === "since") return { sent_ns: String(sentNs) };
  return {};
}

async function bulk(queue, jobs, kind) {
  const began = performance.now();
  let next = 0;
  const lane = async () => {
    while (next < jobs) {
      const first = next;
      next += BULK;
      const size = Math.min(BULK, jobs - first);
      const batch = Array.from({ length: size }, (_, index) => ({
        name: kind,
        data: dataOf(kind, first + index),
        opts: options,
      }));
      await queue.addBulk(batch);
    }
  };
  await Promise.all(Array.from({ length: BULK_CALLS }, lane));
  return { jobs, seconds: (performance.now() - began) / 1_000 };
}

const percentile = (sorted, share) =>
  sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;

async function one(queue, seconds, inFlight) {
  const begin = performance.now() + WARM_UP_MS;
  const end = begin + seconds * 1_000;
  const times = [];
  let early = 0;
  const lane = async () => {
    for (let started = performance.now(); started < end; started = performance.now()) {
      await queue.add("noop", {}, options);
      if (started >= begin) times.push(performance.now() - started);
      else early += 1;
    }
  };
  await Promise.all(Array.from({ length: inFlight }, lane));
  times.sort((a, b) => a - b);
  const found = { sent: times.length + early, jobs: times.length, per_s: times.length / seconds };
  for (const share of [50, 95, 99]) found[`p${share}_ms`] = percentile(times, share / 100);
  return found;
}

async function pace(queue, perSecond, seconds, lanes) {
  const began = performance.now();
  const stepMs = (lanes / perSecond) * 1_000;
  let jobs = 0;
  const lane = async (number) => {
    const turns = Math.max(1, Math.floor((seconds * 1_000) / stepMs + 0.5));
    for (let turn = 0; turn < turns; turn += 1) {
      const due = began + stepMs * (number / lanes + turn);
      if (due > performance.now()) await sleep(due - performance.now());
      if (performance.now() > began + seconds * 1_000) break;
      await queue.add("since", dataOf("since", 0, wallNs()), options);
      jobs += 1;
    }
  };
  await Promise.all(Array.from({ length: lanes }, (_, number) => lane(number)));
  return { jobs, seconds: (performance.now() - began) / 1_000 };
}

// Files as in tally.py. The counter is written every few milliseconds: cheaper than by the handlers themselves.
class Tally {
  jobs = 0;
  firstNs = 0n;
  latencies = -1;
  written = 0;

  path(kind) {
    return join(process.env.BENCH_TALLY, `${process.pid}.${kind}`);
  }

  count() {
    if (this.jobs === 0) this.firstNs = wallNs();
    this.jobs += 1;
  }

  since(sentNs) {
    const data = Buffer.alloc(8);
    data.writeBigInt64LE(wallNs() - BigInt(sentNs));
    if (this.latencies < 0) this.latencies = openSync(this.path("latency"), "a");
    writeSync(this.latencies, data);
    this.count();
  }

  write() {
    if (this.jobs === this.written) return;
    const data = Buffer.alloc(16);
    data.writeBigUInt64LE(BigInt(this.jobs), 0);
    data.writeBigUInt64LE(this.firstNs, 8);
    writeFileSync(this.path("count"), data);
    this.written = this.jobs;
  }
}

async function work(concurrency) {
  const tally = new Tally();
  const ticking = setInterval(() => tally.write(), TALLY_MS);
  const handle = async (job) => {
    if (job.name === "since") return tally.since(job.data.sent_ns);
    tally.count();
    if (job.name === "flaky" && job.data.number % FAILING === 0 && job.attemptsMade === 0) {
      throw new Error("fails once");
    }
  };
  const worker = new Worker(QUEUE, handle, { connection: connect(), concurrency, removeOnComplete: { count: 0 } });
  worker.on("error", (error) => console.error(error));
  await new Promise((resolve) => process.once("SIGTERM", resolve));
  await worker.close();
  clearInterval(ticking);
  tally.write();
  process.exit(0);
}

async function main([task, ...rest]) {
  if (task === "version") return { version: require("bullmq/package.json").version };
  if (task === "work") return work(Number(rest[0]));
  const connection = connect();
  const queue = new Queue(QUEUE, { connection });
  await queue.waitUntilReady();
  const tasks = {
    bulk: () => bulk(queue, Number(rest[0]), rest[1]),
    one: () => one(queue, Number(rest[0]), Number(rest[1])),
    pace: () => pace(queue, Number(rest[0]), Number(rest[1]), Number(rest[2])),
  };
  const found = await tasks[task]();
  await queue.close();
  await connection.quit();
  return found;
}

console.log(JSON.stringify(await main(process.argv.slice(2))));
