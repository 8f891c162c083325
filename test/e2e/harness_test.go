package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/freeport"
)

const (
	// patience is how long to wait for a condition that normally holds within a
	// second: generous, because the machine may be busy.
	patience = 60 * time.Second
	// pollInterval is how often a condition is checked.
	pollInterval = 10 * time.Millisecond
)

// eventually waits until check returns nil. If that takes longer than patience,
// it fails the test with the last error.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	if err := poll(patience, check); err != nil {
		t.Fatalf("%s: not within %v: %v", what, patience, err)
	}
}

// poll calls check at once and then at intervals until it returns nil or time is
// up, and returns the last error.
func poll(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil || errors.As(err, new(hopeless)) || time.Now().After(deadline) {
			return err
		}
		<-ticker.C
	}
}

// hopeless is an error of a condition that can no longer come true.
type hopeless struct{ error }

// freePort returns a port on 127.0.0.1 that no other caller gets.
func freePort(t testing.TB) int {
	t.Helper()
	port, err := freeport.Port()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func portFree(port int) bool {
	l, err := net.Listen("tcp", loopback(port))
	return err == nil && l.Close() == nil
}

// seeded returns a random source and logs its seed. KVD_SEED repeats the choices
// of a run, but not its timing.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KVD_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("KVD_SEED: %v", err)
		}
	}
	t.Logf("KVD_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func tempFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := fmt.Sprintf("%s/%s", t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
