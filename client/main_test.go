package client_test

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/kvd-io/kvd/kvdtest"
)

// endpoints are those of the node that the examples use.
var endpoints []string

// TestMain starts a node for the examples, which have no testing.T.
func TestMain(m *testing.M) {
	t := &mainTB{}
	endpoints = []string{kvdtest.New(t).Endpoint}
	code := m.Run()
	t.cleanup()
	os.Exit(code)
}

// mainTB is what kvdtest needs of a testing.TB.
type mainTB struct {
	testing.TB
	cleanups []func()
}

func (t *mainTB) Helper()                           {}
func (t *mainTB) Cleanup(f func())                  { t.cleanups = append(t.cleanups, f) }
func (t *mainTB) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (t *mainTB) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	t.cleanup()
	os.Exit(1)
}

func (t *mainTB) TempDir() string {
	dir, err := os.MkdirTemp("", "kvd-examples")
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (t *mainTB) cleanup() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
}
