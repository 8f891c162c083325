package raftnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	record "github.com/kvd-io/kvd/internal/proof"
	"github.com/kvd-io/kvd/internal/roster"
)

// These tests run a whole replica, with its goroutines and a real log, in virtual time.
// Those of a cluster are in virtual_cluster_test.go.

// fastDir returns a directory in memory, if the system has one.
func fastDir(t *testing.T) string {
	t.Helper()
	const memory = "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "kvd")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// inBubble runs a test in virtual time. Proposals are pooled, and one whose channel is of
// another bubble must not come back: two collections empty the pool.
func inBubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	runtime.GC()
	runtime.GC()
	synctest.Test(t, test)
	runtime.GC()
	runtime.GC()
}

// virtualTick makes an election timeout of a second.
const virtualTick = 100 * time.Millisecond

// openAlone opens a replica that is its own cluster.
func openAlone(t *testing.T, dir string, sm *lockedMachine) (*Replica, *faultyDisk) {
	t.Helper()
	initial := []roster.Member{{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}}}
	r, err := Open(Config{
		ID: 1, ClusterID: 7, Dir: dir, Nonce: "nonce", PeerURLs: initial[0].PeerURLs, Initial: initial,
		StateMachine: sm, VerifyBody: verifyMachineBody, Logger: zap.NewNop(), TickInterval: virtualTick, ElectionTicks: 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := &faultyDisk{Disk: r.appends.writes}
	r.appends.writes = d
	return r, d
}

// writers keep commands under way until the replica stops, and count those that were
// acknowledged.
type writers struct {
	sync.WaitGroup
	pause time.Duration // of each one between two commands; 0: a millisecond
	mu    sync.Mutex
	next  uint64
	acked []uint64
}

func (w *writers) start(ctx context.Context, r *Replica, n int) {
	for range n {
		w.Go(func() {
			for {
				w.mu.Lock()
				w.next++
				id := w.next
				w.mu.Unlock()
				_, err := r.Propose(ctx, command(id))
				switch {
				case errors.Is(err, ErrStopping), errors.Is(err, ErrUnknown):
					return
				case err == nil:
					w.mu.Lock()
					w.acked = append(w.acked, id)
					w.mu.Unlock()
				}
				time.Sleep(cmp.Or(w.pause, time.Millisecond)) // virtual
			}
		})
	}
}

// TestVirtualShutdownInEveryPhase stops a replica when its n-th save begins, and lets that
// save take a while, for one n after the other: before the first election, with commands in
// flight, and with the save ending long after the stop. Everybody gets an answer, the stop
// does not wait for what hangs, and what was acknowledged is there at the next start.
func TestVirtualShutdownInEveryPhase(t *testing.T) {
	for n := 1; n <= 12; n++ {
		for _, takes := range []time.Duration{0, time.Minute} {
			t.Run(fmt.Sprintf("save %d takes %v", n, takes), func(t *testing.T) {
				acked, lost := lostInBubbles(t, n, takes, nothing)
				if len(lost) > 0 {
					t.Errorf("commands %v were acknowledged and are lost", lost)
				}
				if n > 8 && acked == 0 {
					t.Error("nothing was acknowledged: that proves nothing")
				}
			})
		}
	}
}

// nothing plants no bug.
func nothing(*Replica, *faultyDisk) {}

// lostInBubbles stops a replica at its n-th save, and returns how many commands were
// acknowledged, and which of them are not there at the next start.
func lostInBubbles(t *testing.T, n int, takes time.Duration, plant func(*Replica, *faultyDisk)) (acked int, lost []uint64) {
	t.Helper()
	dir := fastDir(t)
	var all []uint64
	inBubble(t, func(t *testing.T) { all = stopAtSave(t, dir, n, takes, plant) })
	sm := newLockedMachine(t)
	inBubble(t, func(t *testing.T) { startAgain(t, dir, sm) })
	return len(all), slices.DeleteFunc(slices.Clone(all), func(id uint64) bool { return sm.m.seen[id] })
}

func stopAtSave(t *testing.T, dir string, n int, takes time.Duration, plant func(*Replica, *faultyDisk)) []uint64 {
	r, disk := openAlone(t, dir, newLockedMachine(t))
	plant(r, disk)
	ctx, stop := context.WithCancel(t.Context())
	saves := 0
	before := func([]*raftpb.Entry) {
		if saves++; saves == n {
			stop()
			time.Sleep(takes)
		}
	}
	disk.before.Store(&before)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var w writers
	w.start(t.Context(), r, 4)
	begin := time.Now()
	w.Wait() // everybody was answered
	err := <-ended
	if took := time.Since(begin); took > takes+time.Minute {
		t.Errorf("the stop took %v of virtual time", took)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	return w.acked
}

// startAgain starts the replica once more, and writes.
func startAgain(t *testing.T, dir string, sm *lockedMachine) {
	r, _ := openAlone(t, dir, sm)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	<-r.Ready()
	if _, err := r.Propose(ctx, command(1<<40)); err != nil {
		t.Error(err)
	}
	stop()
	<-ended
}

// forgetSaves is a planted bug: what has not been saved is acknowledged.
func forgetSaves(_ *Replica, disk *faultyDisk) { disk.forgets.Store(true) }

// TestVirtualControlForgottenSaves: a replica that acknowledges what it has not saved is
// noticed when it is stopped.
func TestVirtualControlForgottenSaves(t *testing.T) {
	begin := time.Now()
	for n := range 20 {
		if _, lost := lostInBubbles(t, n+1, 0, forgetSaves); len(lost) > 0 {
			record.Caught(t, "virtual time: replicas", "a replica acknowledges what it has not saved", n+1, begin)
			return
		}
	}
	t.Error("nothing was lost")
}

// TestVirtualDiskStall: a disk that hangs makes a replica refuse what is new after a
// while, and not before; what waits gets its answer when the disk goes on.
func TestVirtualDiskStall(t *testing.T) {
	if problem := stallInBubble(t, nothing); problem != "" {
		t.Error(problem)
	}
}

// ignoreStalls is a planted bug: however long a save takes, the disk is not given up.
func ignoreStalls(r *Replica, disk *faultyDisk) {
	r.cfg.StallExit = 1000 * time.Hour
	patient := func([]*raftpb.Entry) { r.appends.savingBytes.Store(1 << 33) }
	disk.before.Store(&patient)
}

// TestVirtualControlStallIgnored: a replica that waits for a disk that hangs is noticed.
func TestVirtualControlStallIgnored(t *testing.T) {
	begin := time.Now()
	if stallInBubble(t, ignoreStalls) == "" {
		t.Error("not noticed")
		return
	}
	record.Caught(t, "virtual time: replicas", "a replica waits for a disk that hangs", 1, begin)
}

// stallInBubble lets a disk hang, and returns what a replica does wrong about it.
func stallInBubble(t *testing.T, plant func(*Replica, *faultyDisk)) (problem string) {
	t.Helper()
	dir := fastDir(t)
	inBubble(t, func(t *testing.T) {
		r, disk := openAlone(t, dir, newLockedMachine(t))
		plant(r, disk)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		<-r.Ready()
		if _, err := r.Propose(ctx, command(1)); err != nil {
			t.Fatal(err)
		}
		hang := make(chan struct{})
		disk.hang.Store(&hang)
		caught := make(chan error, 1)
		go func() {
			_, err := r.Propose(ctx, command(2))
			caught <- err
		}()
		after, noticed := stalled(ctx, r)
		switch {
		case !noticed:
			problem = "a disk that has hung for a minute is not noticed"
		case after < 5*virtualTick:
			problem = fmt.Sprintf("the disk is given up after %v", after)
		}
		disk.hang.Store(nil)
		close(hang)
		if err := <-caught; err != nil {
			problem += fmt.Sprintf("; the write that the hang caught: %v", err)
		}
		synctest.Wait()
		for begin := time.Now(); ; time.Sleep(virtualTick) {
			if _, err := r.Propose(ctx, command(4)); err == nil {
				break
			} else if time.Since(begin) > time.Minute {
				problem += fmt.Sprintf("; a minute after the disk went on: %v", err)
				break
			}
		}
		stop()
		<-ended
	})
	return problem
}

// stalled waits up to a minute until a replica refuses commands because of its disk.
func stalled(ctx context.Context, r *Replica) (after time.Duration, noticed bool) {
	for begin := time.Now(); time.Since(begin) < time.Minute; {
		time.Sleep(virtualTick)
		short, cancel := context.WithTimeout(ctx, virtualTick/2)
		_, err := r.Propose(short, command(3))
		cancel()
		if errors.Is(err, ErrDiskStall) {
			return time.Since(begin), true
		}
	}
	return 0, false
}
