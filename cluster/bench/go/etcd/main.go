// A load generator for etcd through its own Go client (gRPC). Prints one line of JSON.
//
// Debian 12: apt-get install --no-install-recommends golang-etcd-server-dev golang-1.19-go; cluster/bench/load.py
// builds it. Each client asks one thing at a time; clients share -conns connections.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/clientv3"
)

const keys = 1000

func key(number int) string { return fmt.Sprintf("bench/%05d", number) }

// As requests.value: exactly size characters, another text for each key and tag.
func value(number int, tag string, size int) string {
	text := fmt.Sprintf("%s:%05d.", tag, number)
	return strings.Repeat(text, size/len(text)+1)[:size]
}

func main() {
	endpoint := flag.String("endpoint", "127.0.0.1:2379", "host:port")
	connections := flag.Int("conns", 16, "gRPC connections, shared by the clients")
	clients := flag.Int("clients", 64, "requests under way at once")
	seconds := flag.Int("seconds", 5, "")
	operation := flag.String("operation", "put", "put, get, stale or mix")
	size := flag.Int("value-bytes", 128, "")
	tag := flag.String("tag", "x", "begins each value")
	flag.Parse()

	var pool []*clientv3.Client
	for i := 0; i < *connections && i < *clients; i++ {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{*endpoint}, DialTimeout: 3 * time.Second})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		pool = append(pool, client)
	}
	latencies := make([][]int64, *clients)
	failures := make([]int, *clients)
	var position int
	var lock sync.Mutex
	next := func() int { // the list goes round and round, as wrk.lua's does
		lock.Lock()
		defer lock.Unlock()
		number := position
		position = (position + 1) % keys
		return number
	}
	began := time.Now()
	end := began.Add(time.Duration(*seconds) * time.Second)
	deadline, cancel := context.WithDeadline(context.Background(), end.Add(10*time.Second))
	defer cancel()
	var group sync.WaitGroup
	for i := 0; i < *clients; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			client := pool[i%len(pool)]
			for time.Now().Before(end) {
				number := next()
				start := time.Now()
				var err error
				if *operation == "put" || (*operation == "mix" && number%10 == 0) {
					_, err = client.Put(deadline, key(number), value(number, *tag, *size))
				} else if *operation == "stale" {
					err = got(client.Get(deadline, key(number), clientv3.WithSerializable()))
				} else {
					err = got(client.Get(deadline, key(number)))
				}
				if err != nil {
					failures[i]++
					continue
				}
				latencies[i] = append(latencies[i], time.Since(start).Microseconds())
			}
		}(i)
	}
	group.Wait()
	report(latencies, failures, time.Since(began))
}

func got(response *clientv3.GetResponse, err error) error {
	if err == nil && len(response.Kvs) != 1 {
		return fmt.Errorf("no such key")
	}
	return err
}

func report(latencies [][]int64, failures []int, took time.Duration) {
	var all []int64
	failed := 0
	for i := range latencies {
		all = append(all, latencies[i]...)
		failed += failures[i]
	}
	sort.Slice(all, func(a, b int) bool { return all[a] < all[b] })
	at := func(share float64) int64 {
		if len(all) == 0 {
			return 0
		}
		return all[int(share*float64(len(all)-1))]
	}
	fmt.Printf("{\"requests\": %d, \"errors\": %d, \"duration_us\": %d, \"p50_us\": %d, \"p99_us\": %d, \"max_us\": %d}\n",
		len(all), failed, took.Microseconds(), at(0.5), at(0.99), at(1))
}
