// The cluster under test, as every script here sees it.
//
//   URLS      base URLs of all nodes, separated by commas; requests go to any of them, redirects are followed
//   DURATION  of the measured part, as k6 writes it: 30s, 10m
import http from 'k6/http';
import { check, fail, sleep } from 'k6';

export const urls = (__ENV.URLS || 'http://127.0.0.1:8400,http://127.0.0.1:8410,http://127.0.0.1:8420').split(',');
export const seconds = inSeconds(__ENV.DURATION || '30s');
const ANY = { responseCallback: http.expectedStatuses({ min: 200, max: 599 }) };
export const VALUE = 'x'.repeat(128);

export function inSeconds(text) {
  const match = /^(\d+)(s|m|h)$/.exec(text);
  if (!match) throw new Error(`DURATION=${text}: allowed are a number and s, m or h`);
  return Number(match[1]) * { s: 1, m: 60, h: 3600 }[match[2]];
}

export function anyNode() {
  return urls[Math.floor(Math.random() * urls.length)];
}

// One name a kind of request, or every key would be a row of its own in the results.
export function named(name, more = {}) {
  return { redirects: 3, tags: { name }, ...more };
}

// Statuses that are no failure. A redirect on the way to one of them is none either.
export function expected(...statuses) {
  return { responseCallback: http.expectedStatuses(307, ...statuses) };
}

export function put(key, value, more) {
  return http.put(`${anyNode()}/v1/kv/${key}`, value, named('PUT', more));
}

export function get(key, query = '', more = {}) {
  return http.get(`${anyNode()}/v1/kv/${key}${query}`, named(query.includes('stale') ? 'GET stale' : 'GET', more));
}

// Of `setup`: every node is ready, nothing is left of an earlier run, `count` keys are there.
export function prepare(prefix, count) {
  for (const url of urls) {
    for (let tries = 0; http.get(`${url}/readyz`, named('setup', ANY)).status !== 200; tries++) {
      if (tries > 60) fail(`${url} is not ready`);
      sleep(0.5);
    }
  }
  clear(prefix);
  for (let number = 0; number < count; number++) {
    check(http.put(`${urls[0]}/v1/kv/${prefix}${number}`, VALUE, named('setup')), { 'setup: key written': (a) => a.status === 201 });
  }
}

// Of `teardown`: nothing of this run is left. A node that is just starting again is no reason to fail.
export function clear(prefix) {
  for (let more = true, tries = 0; more; ) {
    const node = urls[tries % urls.length];
    const answer = http.del(`${node}/v1/kv?prefix=${prefix}`, null, named('teardown', ANY));
    if (answer.status === 200) {
      more = answer.json('more');
    } else {
      if (++tries > 100) fail(`can't clear ${prefix}: ${answer.status} ${answer.body}`);
      sleep(0.1);
    }
  }
}
