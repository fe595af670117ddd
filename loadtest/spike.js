// A calm load of writes, ten times as much at once, and calm again: too much is refused with 429 and
// Retry-After, nothing else fails, and the calm after is as quick as calm should be.
import { check } from 'k6';
import { Counter } from 'k6/metrics';
import { VALUE, clear, expected, prepare, put, seconds } from './cluster.js';

const PREFIX = 'loadtest/spike/';
const KEYS = 100;
const CALM = Number(__ENV.CALM || 200); // a second
const SPIKE = Number(__ENV.SPIKE || 2000);
const third = Math.max(2, Math.floor(seconds / 3));

const refused = new Counter('refused_with_429');

function part(start, rate) {
  return {
    executor: 'constant-arrival-rate',
    startTime: `${start}s`,
    duration: `${third}s`,
    rate,
    timeUnit: '1s',
    preAllocatedVUs: Math.min(300, rate),
    maxVUs: 600,
  };
}

export const options = {
  scenarios: { calm: part(0, CALM), spike: part(third, SPIKE), after: part(2 * third + 2, CALM) },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    'http_req_duration{scenario:calm}': ['p(95)<300'],
    'http_req_duration{scenario:spike}': ['p(95)<5000'],
    'http_req_duration{scenario:after}': ['p(95)<300'],
  },
};

export function setup() {
  prepare(PREFIX, KEYS);
}

const written = expected(200, 429);

export default function () {
  const answer = put(`${PREFIX}${Math.floor(Math.random() * KEYS)}`, VALUE, written);
  if (answer.status === 429) refused.add(1);
  check(answer, {
    'written, or refused with a time to come back': (a) => a.status === 200 || (a.status === 429 && 'Retry-After' in a.headers),
  });
}

export function teardown() {
  clear(PREFIX);
}
