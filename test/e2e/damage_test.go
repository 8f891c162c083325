package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
)

// contents are the files of a data directory by their paths. The zeros at the end of a
// file are not kept: segments of the log are mostly empty.
type contents map[string]content

type content struct {
	data []byte
	size int64
}

func whole(data []byte) content { return content{data, int64(len(data))} }

// readDirectory reads a data directory whose process has ended.
func readDirectory(t testing.TB, dir string) contents {
	t.Helper()
	files := make(contents)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, rerr := filepath.Rel(dir, path)
		files[name] = content{bytes.Clone(bytes.TrimRight(b, "\x00")), int64(len(b))}
		return errors.Join(err, rerr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// lay makes a directory consist of the files.
func (c contents) lay(t testing.TB, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for name, f := range c {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, f.data, 0o600), os.Truncate(path, f.size)); err != nil {
			t.Fatal(err)
		}
	}
}

// changed compares a directory with the files, except the lock.
func (c contents) changed(t testing.TB, dir string) (names []string) {
	t.Helper()
	now := readDirectory(t, dir)
	all := maps.Clone(now)
	maps.Copy(all, c)
	for name := range all {
		a, had := c[name]
		b, has := now[name]
		same := had == has && a.size == b.size && bytes.Equal(bytes.TrimRight(a.data, "\x00"), b.data)
		if !same && name != "lock" {
			names = append(names, name)
		}
	}
	return names
}

// with returns the files with one of them replaced, and without it if there is nothing to
// replace it with.
func (c contents) with(name string, f *content) contents {
	out := maps.Clone(c)
	if delete(out, name); f != nil {
		out[name] = *f
	}
	return out
}

// withDirectory returns the files with those of one directory taken from others.
func (c contents) withDirectory(dir string, from contents) contents {
	out := maps.Clone(c)
	below := func(name string) bool { return strings.HasPrefix(name, dir+string(filepath.Separator)) }
	maps.DeleteFunc(out, func(name string, _ content) bool { return below(name) })
	for name, f := range from {
		if below(name) {
			out[name] = f
		}
	}
	return out
}

// damagedCase is one thing that may happen to a data directory.
type damagedCase struct {
	file, what string
	files      contents
	foreign    bool // the identity is not that of the settings
	known      bool // the others know that it is wrong, so they run
}

func (d damagedCase) String() string { return d.file + ": " + d.what }

// kindOfFile tells files with different formats apart.
func kindOfFile(name string) string {
	base := filepath.Base(name)
	digits := regexp.MustCompile(`[0-9a-f]{6,}|\.[0-9]+`)
	return filepath.Dir(digits.ReplaceAllString(name, "N")) + "/" + digits.ReplaceAllString(base, "N")
}

// fileDamages returns what may happen to one file: at each of some random places, and to
// the file as a whole.
func (s *specimen) fileDamages(name string, places int) (cases []damagedCase) {
	const sector = 512
	f := s.files[name]
	add := func(c *content, format string, args ...any) {
		cases = append(cases, damagedCase{file: name, what: fmt.Sprintf(format, args...), files: s.files.with(name, c)})
	}
	edit := func(change func(b []byte)) *content {
		b := bytes.Clone(f.data)
		change(b)
		return &content{b, f.size}
	}
	add(nil, "removed")
	if n := len(f.data); n > 0 {
		add(&content{}, "emptied")
		add(&content{size: f.size}, "all zeros")
		for range places {
			at, bit := s.random.IntN(n), s.random.IntN(8)
			add(edit(func(b []byte) { b[at] ^= 1 << bit }), "bit %d of byte %d flipped", bit, at)
			at = s.random.IntN(n) / sector * sector
			add(edit(func(b []byte) { clear(b[at:min(at+sector, n)]) }), "sector at %d zeroed", at)
			at = s.random.IntN(n) / sector * sector
			add(edit(func(b []byte) {
				for i := at; i < min(at+sector, n); i++ {
					b[i] = byte(s.random.Uint32())
				}
			}), "garbage in the sector at %d", at)
			at = s.random.IntN(n)
			cut := whole(f.data[:at])
			add(&cut, "cut at %d", at)
		}
	}
	same := func(o content) bool { return o.size == f.size && bytes.Equal(o.data, f.data) }
	if o, ok := s.older[name]; ok && !same(o) {
		add(&o, "an older copy")
	}
	if o, ok := s.another[name]; ok && !same(o) {
		add(&o, "that of another member")
		cases[len(cases)-1].foreign = name == "member.json"
	}
	return cases
}

// directoryDamages returns what may happen to the directories as a whole.
func (s *specimen) directoryDamages() (cases []damagedCase) {
	for _, dir := range []string{"wal", "snap", "store"} {
		if len(s.files.withDirectory(dir, nil)) == len(s.files) {
			continue // this engine has none
		}
		for what, from := range map[string]contents{"removed": nil, "an older copy": s.older, "that of another member": s.another} {
			cases = append(cases, damagedCase{file: dir, what: what, files: s.files.withDirectory(dir, from)})
		}
	}
	slices.SortFunc(cases, func(a, b damagedCase) int { return strings.Compare(a.String(), b.String()) })
	return cases
}

// cases returns all damages; or, if places is 0, a random one for each kind of file and, in
// long forms, what may happen to directories.
func (s *specimen) cases(places int) (cases []damagedCase) {
	byKind := make(map[string][]string)
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if filepath.Base(name) != "lock" && filepath.Base(name) != "LOCK" {
			byKind[kindOfFile(name)] = append(byKind[kindOfFile(name)], name)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		names := byKind[kind]
		if places == 0 {
			all := s.fileDamages(names[s.random.IntN(len(names))], 1)
			cases = append(cases, all[s.random.IntN(len(all))])
			continue
		}
		// The oldest and the newest of files that are alike.
		for _, name := range slices.Compact([]string{names[0], names[len(names)-1]}) {
			cases = append(cases, s.fileDamages(name, places)...)
		}
	}
	if runSize == "" {
		return cases
	}
	cases = append(cases, s.directoryDamages()...)
	if len(s.helpers) > 0 {
		cases = append(cases, damagedCase{file: ".", what: "an older copy", files: s.older, known: true},
			damagedCase{file: ".", what: "that of another member", files: s.another, known: true, foreign: true})
	}
	return cases
}

// specimen is a stopped member whose files are to be damaged, and what has to be there.
type specimen struct {
	t       *testing.T
	c       *cluster
	victim  *member
	random  *rand.Rand
	files   contents // of the victim
	older   contents // of the victim, from earlier in its life
	another contents // of another member
	// helpers are the other members, by what their directories hold when a case begins.
	// The first one lacks the newest writes; the second one has them all, and starts only if
	// the victim waits for it.
	helpers []helper
	values  map[string]string // acknowledged

	seen struct{ refused, offsets, met, waited, unharmed, remedied, reads int }
	// complain says what is wrong: errorf of the test, unless that is a control.
	complain func(format string, args ...any)
}

type helper struct {
	m     *member
	files contents
}

// write makes a member acknowledge values until the condition holds.
func (s *specimen) write(m *member, size int, until func() bool) {
	s.t.Helper()
	for n := 0; !until(); n++ {
		if n > 2000 {
			s.t.Fatal("2000 writes were not enough")
		}
		key := fmt.Sprint("k", len(s.values)%40, "-", n%40)
		value := fillValue(int(s.random.Uint32()), size)
		put(s.t, m, key, value)
		s.values[key] = value
	}
}

// snapshots counts the snapshots of a member.
func snapshots(t testing.TB, m *member) int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(m.dir, "snap", "*.snap"))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// snapshotOf reports whether the files have the newest snapshot of the member.
func (c contents) snapshotOf(t testing.TB, m *member) bool {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(m.dir, "snap", "*.snap"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%d snapshots, %v", len(names), err)
	}
	_, ok := c[filepath.Join("snap", filepath.Base(slices.Max(names)))]
	return ok
}

func newSpecimen(t *testing.T) *specimen {
	return &specimen{t: t, values: make(map[string]string), random: seeded(t), complain: t.Errorf}
}

// loneSpecimen is the only member of a cluster: nobody else has what it loses.
func loneSpecimen(t *testing.T, engine, checkpoint string, size int) *specimen {
	t.Helper()
	flags := append([]string{"--engine", engine, "--snapshot-checkpoint-bytes", checkpoint, "--snapshot-catch-up-bytes", "64KiB"}, quick...)
	s := newSpecimen(t)
	live := func(values map[string]string) (*cluster, contents) {
		c := newIdleCluster(t, 1, flags...)
		m := c.node(1)
		restart(m)
		s.values = values
		s.write(m, size, func() bool { return snapshots(t, m) > 0 })
		m.stop()
		older := readDirectory(t, m.dir)
		restart(m)
		s.write(m, size, func() bool { return snapshots(t, m) > 1 })
		m.stop()
		return c, older
	}
	other, _ := live(make(map[string]string))
	s.another = readDirectory(t, other.node(1).dir)
	restart(other.node(1)) // what runs in the end is judged
	s.c, s.older = live(make(map[string]string))
	s.victim = s.c.node(1)
	s.files = readDirectory(t, s.victim.dir)
	return s
}

// memberSpecimen is a member of three, and the only one of two that has the newest writes:
// the third is down until the victim needs it, and the second was away when they were made.
func memberSpecimen(t *testing.T) *specimen {
	t.Helper()
	s := newSpecimen(t)
	const size = 3000
	s.c = newCluster(t, 3, append([]string{"--snapshot-checkpoint-bytes", "64KiB", "--snapshot-catch-up-bytes", "64KiB"}, quick...)...)
	s.victim = s.c.node(2)
	behind, whole := s.c.node(3), s.c.node(1)
	s.write(s.victim, size, func() bool { return snapshots(t, s.victim) > 0 })
	behind.stop()
	s.victim.stop()
	s.older = readDirectory(t, s.victim.dir)
	restart(s.victim)
	s.write(s.victim, size, func() bool { return snapshots(t, s.victim) > 1 && !s.older.snapshotOf(t, s.victim) })
	for _, key := range []string{"last1", "last2", "last3"} {
		s.values[key] = "the newest"
		put(t, s.victim, key, s.values[key])
	}
	eventually(t, "both have applied all", s.c.sameState)
	whole.stop()
	s.victim.stop()
	s.files = readDirectory(t, s.victim.dir)
	s.another = readDirectory(t, whole.dir)
	s.helpers = []helper{{behind, readDirectory(t, behind.dir)}, {whole, s.another}}
	return s
}

// begin lays out the files of a case, and starts the helpers that are there from its
// beginning.
func (s *specimen) begin(files contents, helpers int) {
	s.t.Helper()
	files.lay(s.t, s.victim.dir)
	for _, h := range s.helpers {
		h.files.lay(s.t, h.m.dir)
	}
	for _, h := range s.helpers[:min(helpers, len(s.helpers))] {
		h.m.start()
	}
}

// end kills what still runs.
func (s *specimen) end() {
	for _, m := range s.c.nodes {
		if m.running() {
			m.kill()
		}
	}
}

// judge starts the victim on damaged files. It must refuse them, at once or when it meets
// the damage, or serve everything that was acknowledged.
func (s *specimen) judge(d damagedCase) {
	s.t.Helper()
	defer s.end()
	if d.known {
		s.begin(d.files, 2)
		for _, h := range s.helpers {
			h.m.awaitReady()
		}
	} else {
		s.begin(d.files, 1)
	}
	p := s.victim.start()
	if !s.settle(d, p) {
		s.judgeRepetition(d, s.judgeRefusal(d, p))
		return
	}
	if s.meets(d) {
		s.seen.met++
		s.judgeRefusal(d, s.victim.process())
		return
	}
	// The flush at the end may be the first to meet it.
	p = s.victim.process()
	p.signal(s.t, syscall.SIGTERM)
	if p.exitCode(s.t) != 0 {
		s.seen.met++
		s.judgeRefusal(d, p)
		return
	}
	s.seen.unharmed++
}

// settle waits until the victim has ended, or serves, and reports whether it serves. If it
// waits for others, they start, too.
func (s *specimen) settle(d damagedCase, p *process) bool {
	s.t.Helper()
	check := func() error {
		if !p.running() {
			return nil
		}
		return s.victim.ready()
	}
	err := poll(alone, check)
	if err != nil && p.running() && s.callLast() {
		err = poll(patience, check)
	}
	if err != nil && p.running() {
		err = poll(patience, check)
	}
	if err != nil && p.running() {
		s.t.Fatalf("%v: neither ready nor refused: %v\n%s", d, err, p.output.tail(20))
	}
	return p.running()
}

// alone is how long the victim may wait before the last member starts, too: far longer
// than an election takes.
const alone = 8 * time.Second

// callLast starts the last member if it is down, and reports whether it was.
func (s *specimen) callLast() bool {
	if len(s.helpers) < 2 || s.helpers[1].m.running() {
		return false
	}
	s.seen.waited++
	s.helpers[1].m.start()
	return true
}

// meets reads all values, and reports whether the victim ended meanwhile. A victim that met
// the damage and rebuilds its store may need the state of a member that is down.
func (s *specimen) meets(d damagedCase) bool {
	s.t.Helper()
	for key, want := range s.values {
		var a answer
		read := func() error {
			if a = get(s.victim, "/v1/kv/"+key); s.victim.running() && (a.err != nil || a.status >= 429) {
				return fmt.Errorf("%v", a)
			}
			return nil
		}
		err := poll(alone, read)
		if err != nil {
			s.callLast()
			err = poll(patience, read)
		}
		if err != nil {
			s.t.Fatalf("%v: read %s: %v\n%s", d, key, err, s.victim.process().output.tail(20))
		}
		if a.err != nil || a.status >= 429 {
			return true
		}
		s.seen.reads++
		if a.status != 200 || a.body != want {
			s.complain("%v: %s is lost: the answer is %v, and %q was acknowledged", d, key, a, abbreviate(want))
		}
	}
	return false
}

// judgeRefusal checks how a process ended: as one that no supervisor starts again, and with
// what an operator has to know. It returns that.
func (s *specimen) judgeRefusal(d damagedCase, p *process) (message string) {
	s.t.Helper()
	code := p.exitCode(s.t)
	for line := range strings.Lines(p.output.String()) {
		if strings.HasPrefix(line, "kvd: ") {
			message += line
		}
	}
	want, remedy := 3, "emedy: "
	switch {
	case d.foreign && strings.Contains(message, "invalid settings: "):
		want, remedy = 2, "--data-dir" // whether the settings or the directory are wrong is not kvd's to say
	case strings.Contains(message, refusedByCluster):
		remedy = "remove and re-add this member"
	}
	if code != want || !strings.Contains(message, s.victim.dir) || !strings.Contains(message, remedy) {
		s.complain("%v: it ended with exit code %d, and says:\n%s", d, code, p.output.tail(12))
	}
	s.victim.expect(p, code)
	if strings.Contains(message, " at byte ") {
		s.seen.offsets++
	}
	return message
}

// refusedByCluster is what a member says that had to start before others could refuse it.
const refusedByCluster = "the cluster refuses this data directory"

// judgeRepetition checks that a refusal at the start is the verdict of the doctor and of the
// next start, too, and that it changes nothing. If the remedy is to rebuild the store, that
// helps, if there are others.
func (s *specimen) judgeRepetition(d damagedCase, message string) {
	s.t.Helper()
	s.seen.refused++
	m := s.victim
	// The doctor reads no tables, and has no settings to compare the identity with.
	if out, code := doctor(m.dir); code != 3 && !d.foreign && !strings.HasSuffix(d.file, ".sst") && d.file != "store" && d.file != "snap" {
		s.complain("%v: a start refuses it, and the doctor ends with %d:\n%s\n%s", d, code, out, message)
	}
	// The state is opened after the log and the identity have been found whole.
	state := strings.HasPrefix(d.file, "store") || strings.HasPrefix(d.file, "snap") || strings.Contains(message, refusedByCluster)
	names := slices.DeleteFunc(d.files.changed(s.t, m.dir), func(name string) bool { return strings.HasPrefix(name, "store") }) // opening it moves files
	if !state && !d.foreign && len(names) > 0 {
		s.complain("%v: the refused start changed %v", d, names)
	}
	if !s.refusedAgain(d) || len(s.helpers) == 0 || !strings.Contains(message, "--rebuild-store") {
		return
	}
	for _, h := range s.helpers {
		if !h.m.running() {
			h.m.start()
		}
	}
	m.start("--rebuild-store")
	eventually(s.t, fmt.Sprintf("%v: ready with --rebuild-store", d), m.ready)
	if s.meets(d) {
		s.complain("%v: after --rebuild-store, it ended:\n%s", d, m.process().output.tail(12))
	}
	s.seen.remedied++
}

// refusedAgain starts the victim once more. A start reads tables only for whom it has to send
// its state, so the damage of one may not be met before the values are read, or not at all.
func (s *specimen) refusedAgain(d damagedCase) bool {
	s.t.Helper()
	p := s.victim.start()
	if s.settle(d, p) {
		if !strings.HasSuffix(d.file, ".sst") {
			s.t.Errorf("%v: the next start accepts what was refused", d)
			return false
		}
		if !s.meets(d) {
			return false
		}
		p = s.victim.process()
	}
	s.judgeRefusal(d, p)
	return true
}

// finish runs everybody on what is not damaged, for the judges of the cluster, and records
// the result.
func (s *specimen) finish(begin time.Time, cases int) {
	s.t.Helper()
	s.files.lay(s.t, s.victim.dir)
	all := []*member{s.victim}
	for _, h := range s.helpers {
		h.files.lay(s.t, h.m.dir)
		all = append(all, h.m)
	}
	restart(all...)
	if s.meets(damagedCase{what: "undamaged"}) {
		s.t.Error("a member ended without any damage")
	}
	s.t.Logf("%d cases in %v: %d refused at the start (%d with an offset), %d when the damage was met, %d unharmed or mended (%d waited for others); --rebuild-store helped %d times; %d values read",
		cases, time.Since(begin).Round(time.Second), s.seen.refused, s.seen.offsets, s.seen.met, s.seen.unharmed, s.seen.waited, s.seen.remedied, s.seen.reads)
	if s.seen.refused == 0 || s.seen.unharmed == 0 {
		s.t.Error("the cases do not cover the verdicts")
	}
	proof.Record(s.t, proof.Result{
		Suite: "damaged files, real processes", Runs: int64(cases), Operations: int64(s.seen.reads), Seconds: time.Since(begin).Seconds(), Promises: []string{"fails safe"},
		Replay: "KVD_E2E=huge go test -run '^TestDamaged' ./test/e2e",
	})
}

// damagePlaces is at how many places of each file a test changes something; 0 means a random
// damage for each kind of file.
func damagePlaces() int { return map[string]int{sizeHuge: 1}[runSize] }

// run judges all cases.
func (s *specimen) run(places int) {
	s.t.Helper()
	begin := time.Now()
	cases := s.cases(places)
	for _, d := range cases {
		s.judge(d)
	}
	s.finish(begin, len(cases))
}

// TestDamagedFiles changes one file of a lone node, or one of its directories, and starts
// the binary on it. Only KVD_E2E=huge tries all damages to all files.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	loneSpecimen(t, "pebble", "64KiB", 3000).run(damagePlaces())
}

// TestDamagedFilesInMemory does the same with the engine in memory, whose state is in the
// bodies of snapshots, and a log of two segments.
func TestDamagedFilesInMemory(t *testing.T) {
	long(t)
	t.Parallel()
	loneSpecimen(t, "memory", "8MiB", 100_000).run(damagePlaces())
}

// TestDamagedMember damages a member that has writes which the only other running one
// lacks: if it went on without them, they would be lost to the cluster.
func TestDamagedMember(t *testing.T) {
	long(t)
	t.Parallel()
	memberSpecimen(t).run(damagePlaces())
}

// TestControlDamagedFiles: outcomes that must not be are noticed: values that are lost or
// changed after damage, and an end that a supervisor answers with another start.
func TestControlDamagedFiles(t *testing.T) {
	long(t)
	t.Parallel()
	s := loneSpecimen(t, "pebble", "64KiB", 3000)
	values := s.values
	for _, c := range []struct {
		planted string
		files   contents
		values  map[string]string
		port    bool // the port is taken
	}{
		{"the binary answers damage with an older state", s.older, values, false},
		{"the binary answers damage with another value", s.files, map[string]string{"k0-0": "another value"}, false},
		{"the binary loses a key after damage", s.files, map[string]string{"a-key-that-is-not-there": "value"}, false},
		{"the binary ends after damage like after any other failure", s.files, values, true},
	} {
		begin := time.Now()
		var said []string
		s.complain = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
		s.values = c.values
		close := func() {}
		if c.port {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", s.victim.peerPort))
			if err != nil {
				t.Fatal(err)
			}
			close = func() { _ = l.Close() }
		}
		s.judge(damagedCase{file: "store", what: c.planted, files: c.files})
		if close(); len(said) == 0 {
			t.Errorf("not noticed: %s", c.planted)
			continue
		}
		t.Logf("%s: %.300s", c.planted, said[0])
		proof.Caught(t, "damaged files, real processes", c.planted, 1, begin)
	}
	s.complain, s.values = t.Errorf, values
	s.files.lay(t, s.victim.dir)
	restart(s.victim)
}
