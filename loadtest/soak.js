// A steady, moderate load for as long as DURATION says: 10 minutes at least, better hours. What to look for is
// what grows: the latencies in the HTML report, and the nodes' memory, which the runner prints at the end.
import { check } from 'k6';
import { VALUE, clear, get, prepare, put, seconds } from './cluster.js';

const PREFIX = 'loadtest/soak/';
const KEYS = 1000;

export const options = {
  scenarios: {
    steady: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 300),
      timeUnit: '1s',
      duration: `${seconds}s`,
      preAllocatedVUs: 100,
      maxVUs: 300,
    },
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    dropped_iterations: ['count<1'],
    'http_req_duration{name:PUT}': ['p(99)<500'],
    'http_req_duration{name:GET}': ['p(99)<500'],
  },
};

export function setup() {
  prepare(PREFIX, KEYS);
}

export default function () {
  const key = `${PREFIX}${Math.floor(Math.random() * KEYS)}`;
  if (Math.random() < 0.5) check(put(key, VALUE), { 'PUT replaces': (a) => a.status === 200 });
  else check(get(key), { 'GET finds': (a) => a.body === VALUE });
}

export function teardown() {
  clear(PREFIX);
}
