package main

import (
	"os"

	"github.com/kvd-io/kvd/internal/proof"
)

// record writes the figures down, if somebody collects them.
func record(c counts, fresh int) error {
	dir := os.Getenv(proof.Variable)
	if dir == "" {
		return nil
	}
	return proof.Write(dir, proof.Result{
		Suite: "mutants", Runs: int64(c.total), Controls: int64(c.total - c.unjudged - c.known), Caught: int64(c.killed), Violations: int64(fresh),
		Test: "test/mutation", Replay: "make mutation",
	})
}
