// The peer of reporting.py in Go: a queue with one goroutine for each event, in order for one container.
//
// Who adds an event leaves a channel for the next one of the same container, and closes it when the listener has
// returned; the next one's goroutine waits for that. queue CONTAINERS EVENTS prints the nanoseconds from the first
// event to the last return of the listener, and how many events came out of order.
package main

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

type info struct {
	kind   string
	number int
	at     time.Time
}

type listener struct {
	last  []int // by container: those of one never meet
	wrong atomic.Int64
}

func (l *listener) stateChanged(container int, i info) {
	if i.number <= l.last[container] {
		l.wrong.Add(1)
	}
	l.last[container] = i.number
}

type queue struct {
	mutex sync.Mutex
	ends  map[string]chan struct{}
}

func (q *queue) add(id string, job func()) {
	end := make(chan struct{})
	q.mutex.Lock()
	before := q.ends[id]
	q.ends[id] = end
	q.mutex.Unlock()
	go func() {
		if before != nil {
			<-before
		}
		job()
		close(end)
	}()
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		fmt.Fprintln(os.Stderr, "queue CONTAINERS EVENTS")
		os.Exit(2)
	}
	return n
}

func main() {
	if len(os.Args) != 3 {
		number("")
	}
	containers, events := number(os.Args[1]), number(os.Args[2])
	ids := make([]string, containers)
	for n := range ids {
		ids[n] = "container" + strconv.Itoa(n)
	}
	l := &listener{last: make([]int, containers)}
	q := &queue{ends: make(map[string]chan struct{})}
	var told sync.WaitGroup
	told.Add(events)
	begin := time.Now()
	for n := 1; n <= events; n++ {
		container, i := n%containers, info{"oom", n, time.Now()}
		q.add(ids[container], func() {
			l.stateChanged(container, i)
			told.Done()
		})
	}
	told.Wait()
	fmt.Println(time.Since(begin).Nanoseconds(), l.wrong.Load())
}
