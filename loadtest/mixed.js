// Ninety reads for ten writes, from 20 users who never pause, through any node.
import { check } from 'k6';
import { VALUE, clear, get, prepare, put, seconds } from './cluster.js';

const PREFIX = 'loadtest/mixed/';
const KEYS = 200;

export const options = {
  vus: 20,
  duration: `${seconds}s`,
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    'http_req_duration{name:PUT}': ['p(99)<500'],
    'http_req_duration{name:GET}': ['p(99)<300'],
    'http_req_duration{name:GET stale}': ['p(99)<200'],
  },
};

export function setup() {
  prepare(PREFIX, KEYS);
}

export default function () {
  const key = `${PREFIX}${Math.floor(Math.random() * KEYS)}`;
  const dice = Math.random();
  if (dice < 0.1) check(put(key, VALUE), { 'PUT replaces': (a) => a.status === 200 });
  else if (dice < 0.55) check(get(key), { 'GET finds': (a) => a.body === VALUE });
  else check(get(key, '?consistency=stale'), { 'stale GET finds': (a) => a.body === VALUE });
}

export function teardown() {
  clear(PREFIX);
}
