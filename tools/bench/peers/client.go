// The peer of lives.py and rates.py: lives of a container through containerd's own client. See lives.py for its options.
//
// To build it, in a directory of its own with this file: go mod init peer; go get github.com/containerd/containerd@v1.7;
// go build -o go-client .
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd"
	"github.com/containerd/containerd/cio"
	"github.com/containerd/containerd/containers"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/oci"
	"github.com/containerd/containerd/runtime/v2/runc/options"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var (
	address   = flag.String("address", "", "containerd's socket")
	namespace = flag.String("namespace", "", "its namespace")
	specFile  = flag.String("spec", "", "config.json")
	runcRoot  = flag.String("runc-root", "", "where runc keeps its state")
	fifoDir   = flag.String("fifo-dir", "", "where the fifos are made")
	prefix    = flag.String("prefix", "", "how ids begin")
	warm      = flag.Int("warm", 0, "lives that are not counted")
	count     = flag.Int("n", 1, "lives")
	parallel  = flag.Int("p", 1, "at a time")
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// life is one: from the container's creation to the deletion of both, its output read and thrown away.
func life(ctx context.Context, client *containerd.Client, spec specs.Spec, id string) {
	linux := *spec.Linux
	linux.CgroupsPath = "/ctrd-bench-" + id
	spec.Linux = &linux
	withSpec := func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		*s = spec
		return nil
	}
	container, err := client.NewContainer(ctx, id,
		containerd.WithNewSpec(withSpec),
		containerd.WithRuntime("io.containerd.runc.v2", &options.Options{Root: *runcRoot}))
	must(err)
	creator := cio.NewCreator(cio.WithStreams(nil, io.Discard, io.Discard), cio.WithFIFODir(filepath.Join(*fifoDir, id)))
	task, err := container.NewTask(ctx, creator)
	must(err)
	ended, err := task.Wait(ctx)
	must(err)
	must(task.Start(ctx))
	status := <-ended
	must(status.Error())
	_, err = task.Delete(ctx)
	must(err)
	must(container.Delete(ctx))
}

func many(ctx context.Context, client *containerd.Client, spec specs.Spec, from, to int) {
	numbers := make(chan int)
	var group sync.WaitGroup
	for i := 0; i < *parallel; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for number := range numbers {
				life(ctx, client, spec, fmt.Sprintf("%s-%d", *prefix, number))
			}
		}()
	}
	for number := from; number < to; number++ {
		numbers <- number
	}
	close(numbers)
	group.Wait()
}

func main() {
	flag.Parse()
	ctx := namespaces.WithNamespace(context.Background(), *namespace)
	client, err := containerd.New(*address)
	must(err)
	text, err := os.ReadFile(*specFile)
	must(err)
	var spec specs.Spec
	must(json.Unmarshal(text, &spec))
	must(os.MkdirAll(*fifoDir, 0700))
	many(ctx, client, spec, 0, *warm)
	begin := time.Now()
	many(ctx, client, spec, *warm, *warm+*count)
	seconds := time.Since(begin).Seconds()
	var usage syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	cpu := float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
	must(json.NewEncoder(os.Stdout).Encode(map[string]float64{"seconds": seconds, "cpu_seconds": cpu}))
}
