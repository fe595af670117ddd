// A load generator for redis: SET and WAIT 1 in one packet, or GET. Prints one line of JSON.
//
// redis-benchmark can't follow a SET with a WAIT, so it would measure writes that one server alone has.
// Needs nothing but Go's own library; cluster/bench/load.py builds it.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

const keys = 1000

func key(number int) string { return fmt.Sprintf("bench/%05d", number) }

// As requests.value: exactly size characters, another text for each key and tag.
func value(number int, tag string, size int) string {
	text := fmt.Sprintf("%s:%05d.", tag, number)
	return strings.Repeat(text, size/len(text)+1)[:size]
}

func command(words ...string) string {
	text := fmt.Sprintf("*%d\r\n", len(words))
	for _, word := range words {
		text += fmt.Sprintf("$%d\r\n%s\r\n", len(word), word)
	}
	return text
}

// One reply: its first line without the end, and the bulk that follows where there is one.
func reply(reader *bufio.Reader) (string, error) {
	line, err := reader.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	if strings.HasPrefix(line, "$") && line != "$-1" {
		size, err := strconv.Atoi(line[1:])
		if err != nil {
			return "", err
		}
		_, err = io.CopyN(io.Discard, reader, int64(size+2))
		return line, err
	}
	return line, nil
}

func main() {
	endpoint := flag.String("endpoint", "127.0.0.1:6379", "host:port")
	clients := flag.Int("clients", 64, "connections, with one request under way on each")
	seconds := flag.Int("seconds", 5, "")
	operation := flag.String("operation", "put", "put, get or mix")
	size := flag.Int("value-bytes", 128, "")
	tag := flag.String("tag", "x", "begins each value")
	flag.Parse()

	puts, gets := make([]string, keys), make([]string, keys)
	for number := range puts {
		puts[number] = command("SET", key(number), value(number, *tag, *size)) + command("WAIT", "1", "1000")
		gets[number] = command("GET", key(number))
	}
	latencies := make([][]int64, *clients)
	failures := make([]int, *clients)
	var position int
	var lock sync.Mutex
	next := func() int {
		lock.Lock()
		defer lock.Unlock()
		number := position
		position = (position + 1) % keys
		return number
	}
	began := time.Now()
	end := began.Add(time.Duration(*seconds) * time.Second)
	var group sync.WaitGroup
	for i := 0; i < *clients; i++ {
		connection, err := net.Dial("tcp", *endpoint)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		connection.SetDeadline(end.Add(10 * time.Second))
		group.Add(1)
		go func(i int) {
			defer group.Done()
			reader := bufio.NewReaderSize(connection, 16*1024)
			for time.Now().Before(end) {
				number := next()
				write := *operation == "put" || (*operation == "mix" && number%10 == 0)
				start := time.Now()
				if !ask(connection, reader, write, number, puts, gets) {
					failures[i]++
					return // what follows on this connection answers something else
				}
				latencies[i] = append(latencies[i], time.Since(start).Microseconds())
			}
		}(i)
	}
	group.Wait()
	report(latencies, failures, time.Since(began))
}

// True where the value is on two servers, or was read.
func ask(connection net.Conn, reader *bufio.Reader, write bool, number int, puts, gets []string) bool {
	if !write {
		if _, err := io.WriteString(connection, gets[number]); err != nil {
			return false
		}
		line, err := reply(reader)
		return err == nil && line[0] == '$' && line != "$-1"
	}
	if _, err := io.WriteString(connection, puts[number]); err != nil {
		return false
	}
	set, err := reply(reader)
	if err != nil || set != "+OK" {
		return false
	}
	replicas, err := reply(reader)
	return err == nil && replicas == ":1"
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
