// Users count, each on a key of its own, while the runner kills the leader with SIGKILL and starts it again.
// An attempt may fail; then the same increment, under the same idempotency key, goes to the next node. Each
// answer must be exactly one more than the last: no increment lost, none made twice.
import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { clear, named, prepare, seconds, urls } from './cluster.js';

const PREFIX = 'loadtest/failover/';
const TRIES_MAX = 100;

const retried = new Counter('attempts_that_failed');
const untilDone = new Trend('increment_until_done', true);

export const options = {
  scenarios: {
    counting: { executor: 'constant-vus', vus: 10, duration: `${seconds}s`, gracefulStop: '30s' },
  },
  thresholds: {
    checks: ['rate==1'],
    // The longest that any user waited for a write: the gap that the kill made. An election takes 2 s.
    increment_until_done: ['max<10000', 'med<500'],
  },
};

export function setup() {
  prepare(PREFIX, 0);
}

const anyStatus = http.expectedStatuses({ min: 200, max: 599 });
let count = 0;
let node = __VU;

export default function () {
  const target = `/v1/kv/${PREFIX}${__VU}?op=incr&by=1`;
  const headers = { 'Idempotency-Key': `vu${__VU}/${count + 1}` };
  const began = Date.now();
  let answer;
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    answer = http.post(urls[node % urls.length] + target, null, named('incr', { headers, timeout: '3s', responseCallback: anyStatus }));
    if (answer.status === 200) break;
    retried.add(1);
    node++;
    sleep(0.1);
  }
  untilDone.add(Date.now() - began);
  check(answer, { 'exactly one more': (a) => a.status === 200 && a.json('value') === count + 1 });
  count++;
}

export function teardown() {
  clear(PREFIX);
}
