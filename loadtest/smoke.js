// One user, every kind of call once in a while: does it work at all, through any node?
import http from 'k6/http';
import { check } from 'k6';
import { VALUE, anyNode, clear, expected, get, named, prepare, put, seconds } from './cluster.js';

const PREFIX = 'loadtest/smoke/';

export const options = {
  vus: 1,
  duration: `${seconds}s`,
  thresholds: { checks: ['rate==1'], http_req_failed: ['rate==0'], 'http_req_duration{name:PUT}': ['p(95)<500'] },
};

export function setup() {
  prepare(PREFIX, 0);
}

export default function () {
  const key = `${PREFIX}${__ITER}`;
  const made = put(key, VALUE);
  check(made, { 'PUT creates': (a) => a.status === 201 && a.json('revision') > 0 });
  check(get(key), { 'GET gives the value': (a) => a.status === 200 && a.body === VALUE });
  const revision = made.json('revision');
  check(get(key, `?consistency=stale&min_revision=${revision}`), { 'a stale GET that waits too': (a) => a.body === VALUE });
  check(put(`${key}?if_revision=${revision}`, 'second'), { 'PUT if it is still that': (a) => a.status === 200 });
  const late = expected(412);
  check(put(`${key}?if_revision=${revision}`, 'third', late), { 'and not if it is not': (a) => a.status === 412 });
  const listed = http.get(`${anyNode()}/v1/kv?prefix=${PREFIX}&limit=5`, named('list'));
  check(listed, { 'a list has it': (a) => a.status === 200 && a.json('items').length > 0 });
  check(http.del(`${anyNode()}/v1/kv/${key}`, null, named('DELETE')), { 'DELETE': (a) => a.json('deleted') === 1 });
  const gone = expected(404);
  check(get(key, '', gone), { 'and it is gone': (a) => a.status === 404 });
}

export function teardown() {
  clear(PREFIX);
}
