package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kvd-io/kvd/internal/proof"
)

// sumsFile keeps what the last whole run saw, so that the README can be checked against
// it and written anew at any time.
var sumsFile = filepath.Join("docs", "proof.json")

// writeSums adds the results up and writes them to a file. The sums of suites without
// results stay as they are; each suite has to have some in the end.
func writeSums(path string, results []proof.Result) error {
	old, err := readSums(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var sums []proof.Result
	for i := range suites {
		name := suites[i].name
		of := sumsOf(name, results)
		if len(of) == 0 {
			of = sumsOf(name, old)
		}
		if len(of) == 0 {
			return fmt.Errorf("%s was not run: there is nothing to keep", name)
		}
		sums = append(sums, of...)
	}
	text, err := json.MarshalIndent(sums, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// sumsOf adds up the results of one suite. What speaks of other promises has a line of its
// own, and so has each control.
func sumsOf(suite string, results []proof.Result) (sums []proof.Result) {
	var controls []proof.Result
	for _, r := range results {
		if r.Suite != suite {
			continue
		}
		if r.Planted != "" {
			controls = append(controls, r)
			continue
		}
		at := slices.IndexFunc(sums, func(have proof.Result) bool { return slices.Equal(have.Promises, r.Promises) })
		if at < 0 {
			r.Test, r.Replay = "", "go run ./test/proof -only '^"+suite+"$'"
			sums = append(sums, r)
			continue
		}
		add(&sums[at], &r)
	}
	slices.SortFunc(controls, func(a, b proof.Result) int {
		return cmp.Or(strings.Compare(a.Test, b.Test), strings.Compare(a.Planted, b.Planted))
	})
	return append(sums, controls...)
}

func readSums(path string) (sums []proof.Result, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: run the suites first (make proof)", err)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &sums); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return sums, nil
}

// add adds the figures of b to a.
func add(a, b *proof.Result) {
	a.Runs += b.Runs
	a.Operations += b.Operations
	a.Seconds += b.Seconds
	a.Violations += b.Violations
	a.Controls += b.Controls
	a.Caught += b.Caught
	a.Simulated = a.Simulated || b.Simulated
}
