package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"
)

func main() {
	var o options
	flag.IntVar(&o.mutants, "mutants", 100, "mutants of each package; 0 means all")
	flag.DurationVar(&o.budget, "budget", 10*time.Minute, "time for the mutants of each package; those left are not judged")
	flag.DurationVar(&o.slowest, "slowest", 10*time.Second, "leave out tests that take longer")
	flag.DurationVar(&o.each, "each", time.Minute, "time for the tests of one mutant")
	flag.StringVar(&o.skip, "skip", "", "leave out the tests that match this pattern")
	flag.StringVar(&o.judged, "judged", "test/mutation/survivors.txt", "file with the survivors that were judged")
	flag.BoolVar(&o.rerun, "rerun", false, "run only the mutants that are in the file of survivors")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		os.Exit(1)
	}
}
