package e2e

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// drillShape sets the size of the drills. They run with default settings.
type drillShape struct {
	values, clients int
	patience        time.Duration // until a member has become a voter
}

// drillValue is the size of each value.
const drillValue = 64 << 10

// TestDrills adds members to a cluster whose clients write as fast as they can,
// while something else goes wrong. Each must become a voter while the load goes
// on. KVD_E2E=full runs a short form, and KVD_E2E=huge the whole one, with a
// gibibyte and figures (make drills).
func TestDrills(t *testing.T) {
	shape := drillShape{values: 1 << 30 / drillValue, clients: 16, patience: 10 * time.Minute}
	switch runSize {
	case sizeHuge:
	case sizeFull:
		shape = drillShape{values: 64 << 20 / drillValue, clients: 4, patience: 3 * time.Minute}
	default:
		t.Skipf("NOT RUN: takes minutes; KVD_E2E=%s runs it", sizeFull)
	}
	for _, drill := range []struct {
		name  string
		short bool // also in the short form
		run   func(d *drills)
	}{
		{"a new member", true, (*drills).oneMember},
		{"three members at once", false, (*drills).threeMembers},
		{"the receiver is killed midway", true, (*drills).receiverKilled},
		{"the leader changes midway", true, (*drills).leaderChanges},
	} {
		t.Run(drill.name, func(t *testing.T) {
			if runSize == sizeFull && !drill.short {
				t.Skip("NOT RUN: part of the whole form only")
			}
			d := startDrill(t, shape)
			drill.run(d)
			d.load.stop()
			t.Logf("%d writes were acknowledged, %d failed", d.load.written.Load(), d.load.failed.Load())
		})
	}
}

// drills is a loaded cluster.
type drills struct {
	t     *testing.T
	shape drillShape
	c     *cluster
	load  *hammer
}

func startDrill(t *testing.T, shape drillShape) *drills {
	t.Helper()
	d := &drills{t: t, shape: shape, c: newCluster(t, 3)}
	begin := time.Now()
	fill(t, d.c.leader(), 0, shape.values, drillValue)
	t.Logf("%d MiB stored in %v", shape.values*drillValue>>20, time.Since(begin).Round(time.Second))
	d.load = startHammer(d.c.live(), shape)
	t.Cleanup(d.load.stop) // before the cluster is judged
	eventually(t, "the load to run", func() error { return d.load.wrote(100) })
	return d
}

// join starts a new member and returns at once.
func (d *drills) join() *member {
	d.t.Helper()
	m := d.c.add()
	m.start()
	return m
}

// awaitVoters waits until the members are voters, under load.
func (d *drills) awaitVoters(begin time.Time, members ...*member) {
	d.t.Helper()
	for _, m := range members {
		err := poll(d.shape.patience, func() error {
			for _, via := range d.c.live() {
				all, err := via.members()
				if err != nil {
					continue
				}
				for _, x := range all {
					if x.ID == m.id && !x.Learner {
						return nil
					}
				}
			}
			return fmt.Errorf("%v is not a voter yet", m)
		})
		if err != nil {
			d.t.Fatal(err)
		}
		d.t.Logf("%v is a voter after %v; %d writes so far", m, time.Since(begin).Round(time.Second), d.load.written.Load())
	}
}

func (d *drills) oneMember() {
	watched := d.c.live()
	before := make(map[*member]int64)
	for _, m := range watched {
		m.process().forgetPeak(d.t)
		before[m] = int64(m.process().memory(d.t, "VmRSS"))
	}
	begin := time.Now()
	m := d.join()
	d.awaitVoters(begin, m)
	for _, m := range watched {
		grown := int64(m.process().memory(d.t, "VmHWM")) - before[m]
		d.t.Logf("%v: resident %d MiB before, at most %d MiB more meanwhile", m, before[m]>>20, grown>>20)
		if grown > 256<<20 {
			d.t.Errorf("the memory of %v grew by %d MiB", m, grown>>20)
		}
	}
}

func (d *drills) threeMembers() {
	begin := time.Now()
	members := []*member{d.join(), d.join(), d.join()}
	d.awaitVoters(begin, members...)
}

// receiving waits until the member is being sent a snapshot.
func (d *drills) receiving(m *member) {
	d.t.Helper()
	eventually(d.t, "the transfer", func() error {
		var st struct {
			Kept struct {
				Deliveries []struct {
					To    uint64 `json:"to"`
					State string `json:"state"`
				} `json:"deliveries"`
			} `json:"kept_log"`
		}
		if err := d.c.leader().getJSON("/v1/status", &st); err != nil {
			return err
		}
		for _, x := range st.Kept.Deliveries {
			if x.To == m.id {
				return nil
			}
		}
		return fmt.Errorf("no delivery to %v", m)
	})
}

func (d *drills) receiverKilled() {
	begin := time.Now()
	m := d.join()
	d.receiving(m)
	m.kill()
	m.start()
	d.awaitVoters(begin, m)
}

func (d *drills) leaderChanges() {
	begin := time.Now()
	m := d.join()
	d.receiving(m)
	old := d.c.leader()
	old.kill()
	old.start()
	d.awaitVoters(begin, m)
}

// TestDrillsFullDisk adds a member while the disk of the leader has no room for the
// snapshot that it needs, and some clients write. The leader must say so and stay in
// office, and the member must become a voter once there is room. All of the data
// fits into memory, where the small disk is, so the whole form is no larger.
func TestDrillsFullDisk(t *testing.T) {
	if runSize != sizeFull && runSize != sizeHuge {
		t.Skipf("NOT RUN: takes a minute; KVD_E2E=%s runs it", sizeFull)
	}
	const ample, stored = 600 << 20, 64 << 20
	disk := smallDisk(t, fmt.Sprint(ample))
	c := newIdleCluster(t, 3, "--snapshot-catch-up-bytes", "1MiB", "--snapshot-checkpoint-bytes", "8MiB")
	for _, m := range c.nodes {
		if m.id == 1 {
			m.dir = filepath.Join(disk, "data")
			m.args = append(m.raftexampleArgs(c.peerList()), c.flags...)
		}
		m.start()
	}
	c.awaitReady()
	sender := c.node(1)
	moveLeader(t, c, sender)
	fill(t, sender, 0, stored/drillValue, drillValue)
	load := startHammer(c.live(), drillShape{values: 8, clients: 1})
	t.Cleanup(load.stop)

	// What is free lets the log and the store go on for a while, and is less than
	// the reserve that a body leaves to them.
	growDisk(t, disk, fmt.Sprint(usedBytes(t, disk)+60<<20))
	m := c.add()
	m.start()
	eventually(t, "the leader to find no room", func() error {
		if n := metric(t, sender, `kvd_snapshot_total{result="failed",work="build"}`); n == "0" {
			return fmt.Errorf("%s builds failed", n)
		}
		return nil
	})
	sender.process().expectOutput(t, "not enough space")
	eventually(t, "writes beside it", func() error { return load.wrote(100) })
	load.stop()
	if st, err := sender.status(); err != nil || st.Leader != sender.id {
		t.Errorf("after the leader had no room, it says %+v, %v", st, err)
	}
	if n := load.failed.Load(); n > 0 {
		t.Errorf("%d writes failed", n)
	}
	growDisk(t, disk, fmt.Sprint(ample))
	c.awaitVoter(m)
}

// usedBytes is what the file system holds.
func usedBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	return int64(fs.Blocks-fs.Bfree) * int64(fs.Bsize)
}

// hammer is a set of clients that write as fast as they get answers.
type hammer struct {
	stopped         chan struct{}
	once            sync.Once
	done            sync.WaitGroup
	written, failed atomic.Int64
}

func startHammer(members []*member, shape drillShape) *hammer {
	h := &hammer{stopped: make(chan struct{})}
	for client := range shape.clients {
		random := rand.New(rand.NewPCG(uint64(client), 1))
		h.done.Go(func() {
			for at := client; ; {
				select {
				case <-h.stopped:
					return
				default:
				}
				i := random.IntN(shape.values)
				a := send(members[at%len(members)], "PUT", "/v1/kv/"+fillKey(i)+"?timeout=20s", fillValue(i, drillValue))
				if a.err == nil && (a.status == 200 || a.status == 201) {
					h.written.Add(1)
					continue
				}
				h.failed.Add(1)
				at++ // try another member
			}
		})
	}
	return h
}

func (h *hammer) wrote(n int64) error {
	if have := h.written.Load(); have < n {
		return fmt.Errorf("%d writes of %d", have, n)
	}
	return nil
}

func (h *hammer) stop() {
	h.once.Do(func() { close(h.stopped) })
	h.done.Wait()
}
