// Command proof runs the suites that try to prove kvd wrong, and makes one table of what
// they saw. Without arguments it runs all suites of suites.go, one after the other, and
// leaves their results in bin/proof as the JSON documents of package internal/proof.
//
//	go run ./test/proof                       # run, and print the table
//	go run ./test/proof -only 'power|sync'    # some suites; the results of others stay
//	go run ./test/proof -table                # the table of the last run
//	go run ./test/proof -keep docs/proof.json # run, and keep the sums if all is well
//	go run ./test/proof -table -keep …        # keep those of the last run
//	go run ./test/proof -promises README.md   # write the sums of docs/proof.json into the README
//	go run ./test/proof -controls docs/testing.md # and the table of planted bugs into docs/testing.md
//	go run ./test/proof -fuzz docs/testing.md # write the fuzz targets and docs/fuzz.txt there
//
// No suite says "proven". What a run has seen is that it found no violation in so many
// runs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", filepath.Join("bin", "proof"), "directory for the results")
	flag.StringVar(&o.only, "only", "", "run only the suites whose names match this pattern")
	flag.DurationVar(&o.limit, "limit", 30*time.Minute, "time for all suites; those for which none is left count as not run")
	flag.BoolVar(&o.table, "table", false, "run nothing, and print the table of the last run")
	flag.StringVar(&o.keep, "keep", "", "write the sums into this file, unless something was violated; those of suites without results stay")
	flag.StringVar(&o.promises, "promises", "", "run nothing, and write the sums of "+sumsFile+" into this file, between its markers")
	flag.StringVar(&o.controls, "controls", "", "run nothing, and write the controls of "+sumsFile+" into this file, between its markers")
	flag.StringVar(&o.fuzz, "fuzz", "", "run nothing, and write the fuzz targets, with what campaigns did ("+fuzzFile+"), into this file, between its markers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "proof:", err)
		os.Exit(1)
	}
}

type options struct {
	dir, only, keep, promises, controls, fuzz string
	limit                                     time.Duration
	table                                     bool
}

func run(ctx context.Context, o options) error {
	if o.promises != "" || o.controls != "" || o.fuzz != "" {
		return write(o)
	}
	only, err := regexp.Compile(o.only)
	if err != nil {
		return err
	}
	if !o.table {
		if err := runAll(ctx, o, only); err != nil {
			return err
		}
	}
	results, err := readAll(o.dir)
	if err != nil {
		return err
	}
	rows := sum(results)
	printTable(os.Stdout, rows)
	if err := verdict(rows); err != nil || o.keep == "" {
		return err
	}
	return writeSums(o.keep, results)
}

// write writes the sums that were kept into documents.
func write(o options) error {
	if o.fuzz != "" {
		if err := writeFuzz(o.fuzz); err != nil {
			return err
		}
	}
	if o.promises == "" && o.controls == "" {
		return nil
	}
	sums, err := readSums(sumsFile)
	if err == nil && o.promises != "" {
		err = writePromises(o.promises, sums)
	}
	if err == nil && o.controls != "" {
		err = writeControls(o.controls, sums)
	}
	return err
}

// verdict fails a run with a violation, a control that was not caught, or a suite that
// saw nothing.
func verdict(rows []row) error {
	var problems []error
	for _, r := range rows {
		switch {
		case r.Violations > 0:
			problems = append(problems, fmt.Errorf("%s: %d violations", r.Suite, r.Violations))
		case r.Caught < r.Controls:
			problems = append(problems, fmt.Errorf("%s: %d of %d planted bugs were not caught", r.Suite, r.Controls-r.Caught, r.Controls))
		case r.Runs == 0 && r.Controls == 0:
			problems = append(problems, fmt.Errorf("%s: nothing was run", r.Suite))
		}
	}
	if len(rows) == 0 {
		problems = append(problems, errors.New("there are no results: run the suites first (make proof)"))
	}
	return errors.Join(problems...)
}
