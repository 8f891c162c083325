// Package e2e tests the shipped binary the way users run it: real processes on
// 127.0.0.1, real data directories, HTTP and signals. It imports none of kvd's
// packages, so it can judge only what a user can see.
//
// Two judges check each recorded history independently: a witness that replays
// it by the revisions in the answers, and porcupine, which ignores revisions.
//
// KVD_E2E=full makes the random tests long, and KVD_E2E=huge adds runs with a
// gibibyte of data. KVD_BINARY names a binary to test instead of building one.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binary is the kvd under test.
var binary string

// The sizes of a run, selected with KVD_E2E.
const (
	sizeFull = "full"
	sizeHuge = "huge"
)

// runSize is the value of KVD_E2E.
var runSize = os.Getenv("KVD_E2E")

// long skips a test that is not for every "go test ./...".
func long(t *testing.T) {
	t.Helper()
	if runSize == "" {
		t.Skipf("NOT RUN: one of the long suites; KVD_E2E=%s runs it", sizeFull)
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	if runSize != "" {
		ownMounts()
	}
	os.Exit(run(m))
}

// run builds the binary once for all tests.
func run(m *testing.M) int {
	if path := os.Getenv(judgeEnv); path != "" {
		return judgeMain(path)
	}
	dir, err := os.MkdirTemp("", "kvd-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a directory for the binary:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if binary = os.Getenv("KVD_BINARY"); binary == "" {
		binary = filepath.Join(dir, "kvd")
		if err := build(binary); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

func build(path string) error {
	cmd := exec.Command("go", "build", "-o", path, "./cmd/kvd")
	cmd.Dir = repository
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is shipped: with cgo, the engine's memory is not Go's
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build kvd: %w\n%s", err, out)
	}
	return nil
}

// repository is the root of the source tree, relative to this package.
const repository = "../.."
