// The peer of fifos.py and streams.py in Go: fifo PATH N, and discard PATH, as peer.c has them, with containerd/fifo.
//
// To build it, in a directory of its own with this file: go mod init peer; go get github.com/containerd/fifo;
// go build -o go-fifo .
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/fifo"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func once(path string) {
	ctx := context.Background()
	reader, err := fifo.OpenFifo(ctx, path, syscall.O_RDONLY|syscall.O_CREAT|syscall.O_NONBLOCK, 0700)
	check(err)
	writer, err := fifo.OpenFifo(ctx, path, syscall.O_WRONLY|syscall.O_NONBLOCK, 0700)
	check(err)
	b := []byte{'x'}
	_, err = writer.Write(b)
	check(err)
	_, err = io.ReadFull(reader, b)
	check(err)
	check(writer.Close())
	check(reader.Close())
	check(os.Remove(path))
}

func main() {
	switch {
	case len(os.Args) == 4 && os.Args[1] == "fifo":
		count, err := strconv.Atoi(os.Args[3])
		check(err)
		begin := time.Now()
		for i := 0; i < count; i++ {
			once(os.Args[2])
		}
		fmt.Println(time.Since(begin).Nanoseconds() / int64(count))
	case len(os.Args) == 3 && os.Args[1] == "discard":
		reader, err := fifo.OpenFifo(context.Background(), os.Args[2], syscall.O_RDONLY, 0700)
		check(err)
		_, err = io.Copy(io.Discard, reader)
		check(err)
		var usage syscall.Rusage
		check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
		fmt.Println(usage.Utime.Nano() + usage.Stime.Nano())
	default:
		fmt.Fprintln(os.Stderr, "go-fifo fifo PATH N | discard PATH")
		os.Exit(2)
	}
}
