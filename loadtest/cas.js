// Many users, one counter, no locks: each reads it and writes one more, if nobody else did meanwhile. Every
// conflict must be a clean 412, and at the end the counter must stand at exactly the number of writes.
import http from 'k6/http';
import { check } from 'k6';
import { Counter } from 'k6/metrics';
import { clear, expected, get, prepare, put, seconds, urls } from './cluster.js';

const PREFIX = 'loadtest/cas/';
const KEY = `${PREFIX}counter`;

const won = new Counter('cas_won');
const lost = new Counter('cas_lost');

export const options = {
  vus: 10,
  duration: `${seconds}s`,
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    cas_won: ['count>0'],
    'http_req_duration{name:PUT}': ['p(99)<500'],
  },
};

export function setup() {
  prepare(PREFIX, 0);
  check(put(`${KEY}?if_revision=0`, '0'), { 'setup: counter made': (a) => a.status === 201 });
}

const wonOrLost = expected(200, 412);

export default function () {
  const seen = get(KEY);
  const more = { ...wonOrLost, headers: { 'If-Match': seen.headers['Etag'] } };
  const answer = put(KEY, String(Number(seen.body) + 1), more);
  check(answer, { 'won, or lost cleanly': (a) => a.status === 200 || a.status === 412 });
  if (answer.status === 200) won.add(1);
  if (answer.status === 412) lost.add(1);
}

export function teardown() {
  const end = http.get(`${urls[0]}/v1/kv/${KEY}?format=json`);
  check(end, { 'no update was lost': (a) => Number(a.json('value')) === a.json('version') - 1 && a.json('version') > 1 });
  clear(PREFIX);
}
