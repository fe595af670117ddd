// Writes at a fixed rate, each of a key of its own, and says which of them were acknowledged: a point of the metric
// `acknowledged` with the key as its tag. An attempt that fails is made again at the next node. The runner
// (cluster/failover_demo.py) kills the leader meanwhile and reads every acknowledged key back.
import http from 'k6/http';
import { sleep } from 'k6';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { seconds, urls } from '../cluster.js';

const PREFIX = __ENV.PREFIX;
const TRIES_MAX = 200;
const PAUSE_SECONDS = 0.05;

const acknowledged = new Counter('acknowledged');
const failed = new Counter('attempts_that_failed');

export const options = {
  scenarios: {
    writes: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 100),
      timeUnit: '1s',
      duration: `${seconds}s`,
      preAllocatedVUs: 50,
      maxVUs: 300,
      gracefulStop: '30s',
    },
  },
};

const anyStatus = http.expectedStatuses({ min: 200, max: 599 });

export default function () {
  const key = `${PREFIX}${exec.scenario.iterationInTest}`;
  const params = { redirects: 0, timeout: '3s', responseCallback: anyStatus, tags: { name: 'PUT' } };
  for (let tries = 0, node = __VU; tries < TRIES_MAX; tries++, node++) {
    const answer = http.put(`${urls[node % urls.length]}/v1/kv/${key}`, `value of ${key}`, params);
    if (answer.status === 200 || answer.status === 201) {
      acknowledged.add(1, { key });
      return;
    }
    failed.add(1);
    sleep(PAUSE_SECONDS);
  }
}
