package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kvd-io/kvd/internal/proof"
)

// disk is a small ext4 file system on a loop device, whose power can be cut.
type disk struct {
	t           testing.TB
	device, mnt string
	mounted     bool
}

// ownMounts repeats the process in a mount namespace of its own, if that is possible. A
// namespace that somebody else makes meanwhile would have a copy of every mount here, and keep
// a file system that was shut down in use: what is mounted again would be the same broken one.
func ownMounts() {
	const done = "KVD_E2E_OWN_MOUNTS"
	args := []string{"-m", "--propagation", "private", "--"}
	if os.Getenv(done) != "" || exec.Command("unshare", append(args, "true")...).Run() != nil {
		return
	}
	path, err := exec.LookPath("unshare")
	if err == nil {
		err = syscall.Exec(path, slices.Concat([]string{path}, args, os.Args), append(os.Environ(), done+"=1"))
	}
	fmt.Fprintln(os.Stderr, "repeat in a mount namespace:", err)
}

// newDisk makes a disk. Without root, or without loop devices, the test is skipped.
func newDisk(t testing.TB) *disk {
	t.Helper()
	requireTool(t, "mkfs.ext4")
	requireTool(t, "losetup")
	dir := t.TempDir()
	d := &disk{t: t, mnt: filepath.Join(dir, "mnt")}
	image := filepath.Join(dir, "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	// Four times what a node reserves, mostly holes.
	if err := f.Truncate(768 << 20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d.mustRun("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", image)
	out, err := exec.Command("losetup", "-f", "--show", image).CombinedOutput()
	if err != nil {
		t.Skipf("NOT TESTED: power cuts need root and loop devices: %v: %s", err, out)
	}
	d.device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if d.mounted {
			d.unmount()
		}
		if out, err := exec.Command("losetup", "-d", d.device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", d.device, err, out)
		}
	})
	if err := os.Mkdir(d.mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.mount(); err != nil {
		t.Skipf("NOT TESTED: power cuts need root: mount %s: %v", d.device, err)
	}
	return d
}

func (d *disk) mustRun(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v: %s", name, err, out)
	}
}

func (d *disk) mount() error {
	err := unix.Mount(d.device, d.mnt, "ext4", 0, "")
	d.mounted = err == nil
	return err
}

func (d *disk) unmount() {
	d.t.Helper()
	eventually(d.t, "unmount "+d.mnt, func() error { return unix.Unmount(d.mnt, 0) })
	d.mounted = false
}

const (
	fsShutdown = 0x8004587d // FS_IOC_SHUTDOWN, of asm-generic
	noLogFlush = 2          // what is not in the journal by now is lost
)

// cut takes the power away: from now on, nothing reaches the disk.
func (d *disk) cut() {
	d.t.Helper()
	f, err := os.Open(d.mnt)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	how := uint32(noLogFlush)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsShutdown, uintptr(unsafe.Pointer(&how))); e != 0 {
		d.t.Skipf("NOT TESTED: this kernel cannot shut ext4 down: %v", e)
	}
}

// restore brings the disk back with what it had when the power went.
func (d *disk) restore() {
	d.t.Helper()
	d.unmount()
	if err := d.mount(); err != nil {
		d.t.Fatalf("mount %s after a power cut: %v", d.device, err)
	}
}

// counter is a client that raises the number in a key of its own.
type counter struct {
	key          string
	padding      string
	acked, tried atomic.Int64
	writes       atomic.Int64 // acknowledged, since the beginning of the test
}

// run writes until the context ends, through one member after the other.
func (c *counter) run(ctx context.Context, nodes []*member) {
	for i := 0; ctx.Err() == nil; i++ {
		n := c.tried.Add(1)
		a := roundTrip(ctx, nodes[i%len(nodes)], "PUT", "/v1/kv/"+c.key, strings.NewReader(fmt.Sprint(n)+" "+c.padding))
		switch {
		case a.err == nil && (a.status == 200 || a.status == 201):
			// Several may be under way only one after the other, so n is the largest.
			c.acked.Store(n)
			c.writes.Add(1)
		default:
			rest(ctx, 2*time.Millisecond)
		}
	}
}

// powerCuts is one run: a cluster on disks, and clients. All members in cut share a disk.
type powerCuts struct {
	t       *testing.T
	cluster *cluster
	disk    *disk
	onDisk  []*member
	clients []*counter
	random  *rand.Rand
	cuts    int
	unready int          // before the node was ready
	within  map[step]int // right after the step had begun
	errors  int          // starts that failed because the disk told of an earlier error
	lost    []string
	wrap    []string // the command that runs the binary, in a control
}

// powerFlags make snapshots, installs, and checkpoints frequent.
var powerFlags = append([]string{"--snapshot-checkpoint-bytes", "64KiB", "--snapshot-catch-up-bytes", "1MiB"}, quick...)

// newPowerCuts lays out a cluster of n members, of which those in the list are on a disk
// that loses its power.
func newPowerCuts(t *testing.T, n int, onDisk []uint64, padding int) *powerCuts {
	t.Helper()
	d := newDisk(t)
	c := newIdleCluster(t, n, powerFlags...)
	r := &powerCuts{t: t, cluster: c, disk: d, random: seeded(t), within: make(map[step]int)}
	for _, m := range c.nodes {
		if slices.Contains(onDisk, m.id) {
			r.place(m)
		}
	}
	for i := range 4 {
		r.clients = append(r.clients, &counter{key: fmt.Sprint("counter", i), padding: strings.Repeat("p", padding)})
	}
	return r
}

// place moves a member to the disk.
func (r *powerCuts) place(m *member) {
	old := m.dir
	m.dir = filepath.Join(r.disk.mnt, strconv.FormatUint(m.id, 10))
	for i, a := range m.args {
		if a == old {
			m.args[i] = m.dir
		}
	}
	r.onDisk = append(r.onDisk, m)
}

// start runs a member, wrapped if the run is a control.
func (r *powerCuts) start(m *member) {
	if len(r.wrap) == 0 {
		m.start()
		return
	}
	args := append(append(slices.Clone(r.wrap[1:]), binary), m.args...)
	p := startProcess(m.t, fmt.Sprintf("%v run %d", m, len(m.runs)+1), filepath.Dir(m.dir), r.wrap[0], args...)
	m.runs = append(m.runs, p)
}

// round starts what is on the disk, lets it work until the step begins, or for a moment,
// cuts the power, starts it again, and judges what was acknowledged before the cut.
func (r *powerCuts) round(s step, longest time.Duration) {
	r.t.Helper()
	watch := newStepWatch(r.t, r.disk.mnt, s)
	for _, m := range r.onDisk {
		if !m.running() {
			r.start(m)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for _, c := range r.clients {
		clients.Go(func() { c.run(ctx, r.cluster.live()) })
	}
	if s == anytime {
		<-time.After(time.Duration(r.random.Int64N(int64(longest)))) // the fault itself is at a random time
	} else if watch.await(longest) {
		r.within[s]++
		<-time.After(time.Duration(r.random.Int64N(int64(2 * time.Millisecond))))
	}
	watch.close()
	ready := r.onDisk[0].ready() == nil
	// The processes lose their power with the disk. One that ran on for a millisecond could
	// tell others of a write whose sync the kernel was just giving up.
	if len(r.wrap) == 0 {
		for _, m := range r.onDisk {
			freeze(r.t, m.process())
		}
	}
	before := make([]int64, len(r.clients))
	for i, c := range r.clients {
		before[i] = c.acked.Load()
	}
	r.disk.cut()
	cancel()
	clients.Wait()
	for _, m := range r.onDisk {
		p := m.process()
		p.signal(r.t, syscall.SIGKILL) // it lost its power, too
		m.expect(p, p.exitCode(r.t))
	}
	r.disk.restore()
	r.cuts++
	if !ready {
		r.unready++
	}
	for _, m := range r.onDisk {
		r.start(m)
	}
	for _, m := range r.cluster.live() {
		eventually(r.t, m.String()+" is ready after the power cut", func() error {
			if p := m.process(); !p.running() && p.exitCode(r.t) == 3 {
				r.lost = append(r.lost, "a start was refused: "+p.output.tail(3))
				return nil
			}
			r.superviseAfterError(m)
			return m.ready()
		})
	}
	if len(r.lost) > 0 {
		return
	}
	for i, c := range r.clients {
		r.judge(c, before[i])
	}
}

// superviseAfterError starts a member again, as a supervisor does, if the file system has told it of
// an error. Linux may report what it could not write when the power went to whoever syncs
// next, although the disk was mounted anew.
func (r *powerCuts) superviseAfterError(m *member) {
	r.t.Helper()
	const most = 20
	if p := m.process(); !p.running() && p.exitCode(r.t) == 1 && strings.Contains(p.output.tail(3), "input/output error") && r.errors < most {
		r.errors++
		m.expect(p, 1)
		r.start(m)
	}
}

// freeze stops all threads of a process; those in a system call end it, but cannot do
// anything about it.
func freeze(t *testing.T, p *process) {
	t.Helper()
	p.signal(t, syscall.SIGSTOP)
	eventually(t, p.name+" is frozen", func() error {
		if !p.running() {
			return nil
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid()))
		if err != nil {
			return err
		}
		for _, thread := range threads {
			data, err := os.ReadFile(thread)
			if err != nil {
				continue // it has ended
			}
			if _, state, _ := strings.Cut(string(data), ") "); !strings.ContainsAny(state[:1], "TDZX") {
				return fmt.Errorf("a thread is in state %.1s", state)
			}
		}
		return nil
	})
}

// judge reads a counter: it must not be below what was acknowledged before the cut, and
// not above what was sent.
func (r *powerCuts) judge(c *counter, least int64) {
	r.t.Helper()
	var n int64
	eventually(r.t, "read "+c.key, func() error {
		a := get(r.cluster.live()[r.random.IntN(len(r.cluster.live()))], "/v1/kv/"+c.key)
		switch {
		case a.err == nil && a.status == 404:
			n = 0
		case a.err == nil && a.status == 200:
			if _, err := fmt.Sscan(a.body, &n); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	if n < least || n > c.tried.Load() {
		r.lost = append(r.lost, fmt.Sprintf("cut %d: %s is %d; %d was acknowledged, %d sent", r.cuts, c.key, n, least, c.tried.Load()))
	}
	c.acked.Store(max(n, least)) // what was unknown is decided
}

// powerRounds is how many cuts a test makes; KVD_POWER_CUTS says how many all tests make
// together.
func powerRounds(t *testing.T, share float64) int {
	t.Helper()
	total := map[string]int{sizeFull: 40, sizeHuge: 3100}[runSize]
	if total == 0 {
		total = 20
	}
	if s := os.Getenv("KVD_POWER_CUTS"); s != "" {
		var err error
		if total, err = strconv.Atoi(s); err != nil {
			t.Fatalf("KVD_POWER_CUTS: %v", err)
		}
	}
	return max(3, int(share*float64(total)))
}

// report records the run. It fails if something was lost, or if one of the steps was never
// cut off.
func (r *powerCuts) report(begin time.Time, steps ...step) {
	r.t.Helper()
	acked := int64(0)
	for _, c := range r.clients {
		acked += c.writes.Load()
	}
	r.t.Logf("%d power cuts in %v: %d before the node was ready; by the step that had just begun: %v; %d writes acknowledged, %d starts after an error of the disk, %d violations",
		r.cuts, time.Since(begin).Round(time.Second), r.unready, r.within, acked, r.errors, len(r.lost))
	for _, l := range r.lost {
		r.t.Error(l)
	}
	if acked < int64(r.cuts) {
		r.t.Errorf("only %d writes were acknowledged: that proves nothing", acked)
	}
	for _, s := range steps {
		if r.within[s] == 0 && r.cuts >= 15 {
			r.t.Errorf("no cut fell into the step %q", s)
		}
	}
	proof.Record(r.t, proof.Result{
		Suite: "power cuts", Runs: int64(r.cuts), Operations: acked, Seconds: time.Since(begin).Seconds(), Violations: int64(len(r.lost)), Promises: []string{"durable"},
		Replay: "KVD_E2E=full KVD_POWER_CUTS=3100 go test -run '^TestPowerCut' ./test/e2e",
	})
}

// TestPowerCutAlone cuts the power of a node that nobody else can help: at any time, in its
// first start, segment cuts, and saves of snapshots.
func TestPowerCutAlone(t *testing.T) {
	long(t)
	begin := time.Now()
	r := newPowerCuts(t, 1, []uint64{1}, 60_000)
	for r.cuts < powerRounds(t, 0.5) && len(r.lost) == 0 {
		switch r.cuts % 5 {
		case 0: // another first start, which is over in no time
			r.again()
			r.round(anytime, 100*time.Millisecond)
		case 1:
			r.again()
			r.round(identitySaved, time.Second)
		case 2:
			r.round(snapshotSaved, 2*time.Second)
		case 3:
			r.round(segmentCut, 5*time.Second)
		case 4:
			r.round(anytime, 700*time.Millisecond)
		}
	}
	r.report(begin, identitySaved, snapshotSaved, segmentCut)
}

// again wipes the disk, so that the next start is a first one.
func (r *powerCuts) again() {
	r.t.Helper()
	for _, m := range r.onDisk {
		if len(m.runs) == 0 {
			continue
		}
		m.stop()
		if err := os.RemoveAll(m.dir); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, c := range r.clients {
		c.acked.Store(0)
	}
	// Otherwise the next cut may bring back what was removed.
	f, err := os.Open(r.disk.mnt)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestPowerCutOfTheCluster cuts the power of all members at once: at any time, and while
// they found their cluster.
func TestPowerCutOfTheCluster(t *testing.T) {
	long(t)
	begin := time.Now()
	r := newPowerCuts(t, 3, []uint64{1, 2, 3}, 2_000)
	for r.cuts < powerRounds(t, 0.25) && len(r.lost) == 0 {
		switch r.cuts % 5 {
		case 0:
			r.again()
			r.round(identitySaved, time.Second)
		case 1:
			r.again()
			r.round(anytime, 300*time.Millisecond)
		case 2:
			r.round(snapshotSaved, 3*time.Second)
		default:
			r.round(anytime, 1500*time.Millisecond)
		}
	}
	r.report(begin, identitySaved, snapshotSaved)
}

// TestPowerCutOfAFollower cuts the power of one member: at any time, and while it installs
// the snapshot with which it catches up.
func TestPowerCutOfAFollower(t *testing.T) {
	long(t)
	begin := time.Now()
	r := newPowerCuts(t, 3, []uint64{3}, 60_000)
	for _, id := range []uint64{1, 2} {
		r.cluster.node(id).start()
	}
	follower, ballast := r.cluster.node(3), strings.Repeat("x", ballastBytes)
	for r.cuts < powerRounds(t, 0.15) && len(r.lost) == 0 {
		if r.cuts%3 == 0 {
			r.round(anytime, 1500*time.Millisecond)
			continue
		}
		// What it lacks of the log goes by without it.
		follower.stop()
		r.cluster.releaseLog(t, func() {
			eventually(t, "a put is refused", func() error {
				if a := send(r.cluster.leader(), "PUT", fmt.Sprintf("/v1/kv/ballast?if_revision=%d", uint64(1)<<52), ballast); a.status != 412 {
					return fmt.Errorf("%v", a)
				}
				return nil
			})
		})
		r.round([]step{bodyReceived, storeInstalled}[r.cuts%2], 3*time.Second)
	}
	r.report(begin, bodyReceived, storeInstalled)
}

// TestPowerCutOfAJoiningMember cuts the power of members that join.
func TestPowerCutOfAJoiningMember(t *testing.T) {
	long(t)
	begin := time.Now()
	r := newPowerCuts(t, 2, nil, 20_000)
	for _, m := range r.cluster.nodes {
		m.start()
	}
	r.cluster.awaitReady()
	for r.cuts < powerRounds(t, 0.1) && len(r.lost) == 0 {
		m := r.cluster.add()
		r.onDisk = nil
		r.place(m)
		r.round(identitySaved, time.Second)
		r.round([]step{anytime, storeInstalled}[r.cuts/2%2], 500*time.Millisecond)
		if len(r.lost) > 0 {
			break
		}
		r.cluster.awaitVoter(m)
		r.cluster.remove(r.cluster.node(1), m)
		m.noDoctor = true
		if err := os.RemoveAll(m.dir); err != nil {
			t.Fatal(err)
		}
	}
	r.report(begin, identitySaved)
}

// TestControlPowerCut: with fsync switched off below the node, power cuts lose writes,
// so the suite is not blind.
func TestControlPowerCut(t *testing.T) {
	long(t)
	requireTool(t, "strace")
	begin := time.Now()
	r := newPowerCuts(t, 1, []uint64{1}, 2_000)
	r.wrap = []string{"strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=fsync,fdatasync,sync_file_range", "-e", "inject=fsync,fdatasync,sync_file_range:retval=0", "-o", "/dev/null"}
	for r.cuts < 15 && len(r.lost) == 0 {
		r.round(anytime, 2*time.Second)
	}
	t.Logf("caught after %d cuts, %v: %.200q", r.cuts, time.Since(begin).Round(time.Second), r.lost)
	if len(r.lost) == 0 {
		t.Error("fsync does nothing, and nothing was lost")
	} else {
		proof.Caught(t, "power cuts", "fsync does nothing, under real power cuts", r.cuts, begin)
	}
	m := r.cluster.node(1)
	m.process().abandon()
	m.expect(m.process(), m.process().exitCode(t))
	// What runs in the end must be whole again.
	eventually(t, "the directory can be removed", func() error { return os.RemoveAll(m.dir) })
	restart(m)
}
