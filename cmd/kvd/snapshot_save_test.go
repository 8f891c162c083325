package main

import (
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestOnlyWaitingForDataStalls: a backup that is large takes longer to be written and
// verified than a node may send nothing.
func TestOnlyWaitingForDataStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stalled atomic.Bool
		body, node := io.Pipe()
		r := stallReader{body, time.AfterFunc(saveStall, func() { stalled.Store(true) })}
		go func() { _, _ = node.Write([]byte("x")) }()
		if n, err := r.Read(make([]byte, 8)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		time.Sleep(10 * saveStall) // of the bubble: the file is verified
		synctest.Wait()
		if stalled.Load() {
			t.Error("the time after the last piece counts")
		}
		go func() { _, _ = r.Read(make([]byte, 8)) }()
		time.Sleep(saveStall)
		synctest.Wait()
		if !stalled.Load() {
			t.Error("a node that sends nothing is waited for")
		}
		node.Close()
	})
}
