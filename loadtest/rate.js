// Durable writes at a fixed rate, whatever the answers take: what a user waits, not what a server can bear.
// The same for raftkv and for etcd's JSON gateway (KIND), aimed at the leader (URLS has one), so that the runner can
// compare the p99 of both.
import encoding from 'k6/encoding';
import http from 'k6/http';
import { check } from 'k6';
import { VALUE, seconds, urls } from './cluster.js';

const KEYS = 1000;
const etcd = __ENV.KIND === 'etcd';

export const options = {
  discardResponseBodies: true,
  scenarios: {
    writes: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 2000),
      timeUnit: '1s',
      duration: `${seconds}s`,
      preAllocatedVUs: 300,
      maxVUs: 300,
    },
  },
  thresholds: { checks: ['rate==1'], http_req_failed: ['rate==0'] },
};

const names = Array.from({ length: KEYS }, (_, number) => `bench/${String(number).padStart(5, '0')}`);
const bodies = etcd
  ? names.map((key) => JSON.stringify({ key: encoding.b64encode(key), value: encoding.b64encode(VALUE) }))
  : [];
const params = { redirects: 0, tags: { name: 'PUT' } };

export default function () {
  const number = Math.floor(Math.random() * KEYS);
  const answer = etcd
    ? http.post(`${urls[0]}/v3/kv/put`, bodies[number], params)
    : http.put(`${urls[0]}/v1/kv/${names[number]}`, VALUE, params);
  check(answer, { written: (a) => a.status === 200 || a.status === 201 });
}
