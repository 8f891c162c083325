package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// disk is a file on a disk with a limit.
type disk struct {
	mu   sync.Mutex
	text bytes.Buffer
	room int
	held chan struct{} // writes wait while it is not nil and open
}

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	held := d.held
	d.mu.Unlock()
	if held != nil {
		<-held
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(p), d.room)
	d.room -= n
	d.text.Write(p[:n])
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func (d *disk) Close() error { return nil }

func (d *disk) free(room int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = room
}

// lines returns the lines that are not torn.
func (d *disk) lines(t *testing.T) (out []map[string]any) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for text := range strings.Lines(d.text.String()) {
		var ln map[string]any
		if json.Unmarshal([]byte(text), &ln) == nil {
			out = append(out, ln)
		}
	}
	return out
}

// open returns a log on a disk. Its end waits until everything is written.
func open(t *testing.T, opts Options) (*Log, *disk) {
	t.Helper()
	d := &disk{room: 1 << 30}
	l := newLog(opts)
	l.now = func() time.Time { return time.Unix(1_800_000_000, 0) }
	l.sink = newSink(d, maxQueuedBytes, l.lostLines)
	t.Cleanup(l.Close)
	return l, d
}

// cluster carries out every command, and refuses puts of the key "taken".
type cluster struct {
	Cluster
	commands int
	err      error
}

func (c *cluster) Do(_ context.Context, cmd *kvstore.Command, _ func(string, time.Duration)) (kvstore.Result, error) {
	c.commands++
	r := kvstore.Result{Revision: 7, Succeeded: cmd.Txn != nil}
	if string(cmd.Key) == "taken" {
		r.Outcome = kvstore.PreconditionFailed
	}
	if cmd.TTLMillis > 0 {
		r.Lease = &kvstore.Lease{ID: 42}
	}
	return r, c.err
}

func (c *cluster) DoGroup(ctx context.Context, commands [][]byte, _ func(string, time.Duration)) ([]*kvstore.Result, error) {
	var out []*kvstore.Result
	for _, b := range commands {
		cmd, err := kvstore.DecodeCommand(b)
		if err != nil {
			return nil, err
		}
		r, _ := c.Do(ctx, &cmd, nil)
		out = append(out, &r)
	}
	return out, c.err
}

func put(key string) *kvstore.Command {
	return &kvstore.Command{Op: kvstore.OpPut, Key: []byte(key), Value: []byte("s3cret")}
}

var ann = &access.Caller{User: "ann", Proof: access.Token, TokenID: "t1", Address: "192.0.2.1:5"}

func begin(l *Log, operation string) (context.Context, *Request) {
	r := l.Begin(Subject{RequestID: "r1", Face: FaceHTTP, Operation: operation, Caller: ann})
	return NewContext(context.Background(), r), r
}

// TestLongTarget: what is cut off a long change of rights is not that the password is new.
func TestLongTarget(t *testing.T) {
	l, d := open(t, Options{})
	user := &rights.User{Name: strings.Repeat("\u0080", rights.MaxNameBytes/2), Hash: []byte("$2a$hash")}
	for i := range 100 {
		user.Roles = append(user.Roles, fmt.Sprint("role ", i))
	}
	ctx, _ := begin(l, "PUT /v1/users/{name}")
	if _, err := (Replicator{new(cluster), l}).Do(ctx, &kvstore.Command{Op: kvstore.OpRights, Rights: &rights.Change{PutUser: user}}, nil); err != nil {
		t.Fatal(err)
	}
	l.Close()
	target, _ := d.lines(t)[0]["target"].(string)
	if len(target) != maxTargetBytes || !strings.HasPrefix(target, `put user (new password) "`) {
		t.Errorf("%d bytes: %s", len(target), target)
	}
}

// TestLines: what becomes of every kind of command, and of requests without one.
func TestLines(t *testing.T) {
	l, d := open(t, Options{Keys: KeysPlain})
	p := Replicator{new(cluster), l}
	do := func(cmd *kvstore.Command) {
		t.Helper()
		ctx, r := begin(l, "PUT /v1/kv/{key}")
		if _, err := p.Do(ctx, cmd, nil); err != nil {
			t.Fatal(err)
		}
		r.End(Ending{Administrative: true}) // it is recorded once
	}
	do(put("a"))
	do(put("taken"))
	do(put("\xff"))
	do(&kvstore.Command{Op: kvstore.OpDeleteRange, Key: []byte("a"), End: []byte("b")})
	do(&kvstore.Command{Op: kvstore.OpDeleteRange, Key: []byte("a")})
	do(&kvstore.Command{Op: kvstore.OpLock, Key: []byte("l"), TTLMillis: 5})
	do(&kvstore.Command{Op: kvstore.OpTxn, Txn: &kvstore.Txn{Then: []kvstore.Command{*put("x")}, Else: []kvstore.Command{*put("y")}}})
	do(&kvstore.Command{Op: kvstore.OpRights, Rights: &rights.Change{PutUser: &rights.User{Name: "bob", Hash: []byte("$2a$hash")}, Enable: true, RotateKey: []byte("signing")}})
	ctx, r := begin(l, "POST /v1/batch")
	if _, err := p.DoGroup(ctx, [][]byte{kvstore.EncodeCommand(nil, put("g")), kvstore.EncodeCommand(nil, put("taken"))}, nil); err != nil {
		t.Fatal(err)
	}
	r.Refused(api.Errorf(api.PermissionDenied, "no"), "line 3")
	_, r = begin(l, "GET /v1/snapshot")
	r.End(Ending{Administrative: true, Target: "all"})
	_, r = begin(l, "GET /v1/kv/{key}")
	r.End(Ending{}) // a read is not recorded
	r.End(Ending{Err: api.Errorf(api.KeyNotFound, "none")})
	_, r = begin(l, "GET /v1/kv/{key}")
	r.End(Ending{Err: api.Errorf(api.Unauthenticated, "who are you")})
	l.Close()

	common := map[string]any{"time": "2027-01-15T08:00:00Z", "request_id": "r1", "face": "http", "client": "192.0.2.1:5", "user": "ann", "proof": "token", "token_id": "t1", "operation": "PUT /v1/kv/{key}"}
	key := func(k string) []any { return []any{map[string]any{"key": k}} }
	want := []map[string]any{
		{"action": "put", "keys": key("a"), "outcome": "ok", "revision": 7.},
		{"action": "put", "keys": key("taken"), "outcome": "precondition_failed", "revision": 7.},
		{"action": "put", "keys": []any{map[string]any{"key": "/w==", "as": "base64"}}, "outcome": "ok", "revision": 7.},
		{"action": "delete_range", "keys": []any{map[string]any{"space": "key", "start": "a", "end": "b"}}, "outcome": "ok", "revision": 7.},
		{"action": "delete_range", "keys": []any{map[string]any{"space": "key", "start": "a"}}, "outcome": "ok", "revision": 7.},
		{"action": "lock", "keys": []any{map[string]any{"lock": "l"}}, "lease": 42., "outcome": "ok", "revision": 7.},
		{"action": "txn", "keys": append(key("x"), key("y")...), "branch": "then", "outcome": "ok", "revision": 7.},
		{"action": "rights", "target": "put user (new password) \"bob\" with roles []; enable rights; replace the key of logins", "outcome": "ok", "revision": 7.},
		{"operation": "POST /v1/batch", "action": "put", "keys": key("g"), "outcome": "ok", "revision": 7.},
		{"operation": "POST /v1/batch", "action": "put", "keys": key("taken"), "outcome": "precondition_failed", "revision": 7.},
		{"operation": "POST /v1/batch", "target": "line 3", "outcome": "permission_denied"},
		{"operation": "GET /v1/snapshot", "target": "all", "outcome": "ok"},
		{"operation": "GET /v1/kv/{key}", "outcome": "unauthenticated"},
	}
	got := d.lines(t)
	if len(got) != len(want) || l.Written() != uint64(len(want)) || l.Dropped() != 0 {
		t.Fatalf("%d lines, want %d: %v", len(got), len(want), got)
	}
	for i, w := range want {
		full := map[string]any{}
		for _, m := range []map[string]any{common, w} {
			for k, v := range m {
				full[k] = v
			}
		}
		if !reflect.DeepEqual(got[i], full) {
			t.Errorf("line %d: %v, want %v", i, got[i], full)
		}
	}
	for _, secret := range []string{"s3cret", "$2a$", "signing"} {
		if strings.Contains(d.text.String(), secret) {
			t.Errorf("the log has %s", secret)
		}
	}
}

// TestRefusalsSayWhatWasMissing in the form of keys that was chosen.
func TestRefusalsSayWhatWasMissing(t *testing.T) {
	tables := rights.New()
	for _, c := range []*rights.Change{{PutUser: &rights.User{Name: "root", Roles: []string{"root"}}, Enable: true}, {PutUser: &rights.User{Name: "ann"}}} {
		var err error
		if tables, _, err = tables.Apply(c); err != nil {
			t.Fatal(err)
		}
	}
	gate := access.New(access.Options{Tables: func() *rights.Tables { return tables }})
	refusal := gate.CheckCommand(&access.Caller{User: "ann"}, put("secret/k"))
	capability := gate.Check(&access.Caller{User: "ann"}, rights.Need{Capability: rights.Backup})
	for mode, want := range map[string]string{
		KeysPlain:  `"keys":[{"key":"secret/k"}],"missing":"write"`,
		KeysOff:    `"missing":"write"`,
		KeysHashed: `"as":"hash"`,
	} {
		l, d := open(t, Options{Keys: mode, Salt: func() string { return "salt" }})
		_, r := begin(l, "PUT /v1/kv/{key}")
		r.End(Ending{Err: refusal})
		_, r = begin(l, "GET /v1/snapshot")
		r.End(Ending{Err: capability})
		l.Close()
		text := d.text.String()
		if !strings.Contains(text, want) || !strings.Contains(text, `"missing":"backup"`) || mode != KeysPlain && strings.Contains(text, "secret/k") {
			t.Errorf("%s: %s", mode, text)
		}
	}
	a, b := newLog(Options{Salt: func() string { return "a" }}), newLog(Options{Salt: func() string { return "b" }})
	hash := func(l *Log, key string) string { return *l.hash([]byte(key)) }
	first := hash(a, "k")
	if first == hash(b, "k") || first != hash(a, "k") || first == hash(a, "l") {
		t.Error("a hash does not depend on the cluster and the key alone")
	}
}

// TestLongTransaction: what one line names is bounded.
func TestLongTransaction(t *testing.T) {
	l, d := open(t, Options{Keys: KeysPlain})
	txn := new(kvstore.Txn)
	for range 5000 {
		txn.Then = append(txn.Then, *put(strings.Repeat("k", 1000)))
	}
	if _, err := (Replicator{new(cluster), l}).Do(context.Background(), &kvstore.Command{Op: kvstore.OpTxn, Txn: txn}, nil); err != nil {
		t.Fatal(err)
	}
	l.Close()
	got := d.lines(t)
	if len(got) != 1 || d.text.Len() > 20<<10 || got[0]["keys_omitted"] != float64(5000-len(got[0]["keys"].([]any))) || got[0]["operation"] != "kvd" {
		t.Errorf("%d bytes, omitted %v", d.text.Len(), got[0]["keys_omitted"])
	}
}

// await waits until a condition holds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !cond() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatal(what)
		}
	}
}

// TestLostLines: a full disk, and a full queue, hold up nobody; what is lost is counted, and
// the log says so.
func TestLostLines(t *testing.T) {
	l, d := open(t, Options{Keys: KeysOff})
	p := Replicator{new(cluster), l}
	do := func() {
		t.Helper()
		if _, err := p.Do(context.Background(), put("a"), nil); err != nil {
			t.Fatal(err)
		}
	}
	do()
	await(t, "the line is not written", func() bool { return l.Written() == 1 })
	d.free(20) // a line that is torn
	do()
	do()
	await(t, "lost lines are not counted", func() bool { return l.Dropped() == 2 })
	d.free(1 << 30)
	held := make(chan struct{})
	d.mu.Lock()
	d.held = held
	d.mu.Unlock()
	long := put(strings.Repeat("x", 1000))
	l.opts.Keys = KeysPlain
	for range maxQueuedBytes/1000 + 10 { // nothing is written, and nobody waits
		if _, err := p.Do(context.Background(), long, nil); err != nil {
			t.Fatal(err)
		}
	}
	if l.Dropped() <= 2 {
		t.Error("the queue has no bound")
	}
	d.mu.Lock()
	d.held = nil
	d.mu.Unlock()
	close(held)
	l.Close()
	lost := 0.
	for _, ln := range d.lines(t) {
		if ln["outcome"] == outcomeLost {
			lost += ln["dropped"].(float64)
		}
	}
	if lost != float64(l.Dropped()) {
		t.Errorf("the log tells of %v lines, and %d are lost", lost, l.Dropped())
	}
}

// TestStrict: nothing is carried out whose intent is not in the log.
func TestStrict(t *testing.T) {
	l, d := open(t, Options{Keys: KeysPlain, Strict: true})
	c := new(cluster)
	p := Replicator{c, l}
	group := [][]byte{kvstore.EncodeCommand(nil, put("g")), kvstore.EncodeCommand(nil, put("h"))}
	ctx, _ := begin(l, "PUT /v1/kv/{key}")
	if _, err := p.Do(ctx, put("a"), nil); err != nil {
		t.Fatal(err)
	}
	if got := d.lines(t); len(got) == 0 || got[0]["outcome"] != "intent" {
		t.Fatalf("%v", got)
	}
	admin, r := begin(l, "PUT /v1/settings")
	if err := r.Intend(admin, "settings"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Do(admin, put("settings"), nil); err != nil { // its intent is known
		t.Fatal(err)
	}
	await(t, "the lines are not written", func() bool { return l.Written() == 4 })
	d.free(10)
	var e *api.Error
	refused := func(what string, err error) {
		t.Helper()
		if !errors.As(err, &e) || e.Code != api.AuditFailed || !strings.Contains(e.Detail, "no space left") || !strings.Contains(e.Detail, "nothing was done") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := p.Do(ctx, put("b"), nil)
	refused("put", err)
	_, err = p.DoGroup(ctx, group, nil)
	refused("group", err)
	refused("administrative", r.Intend(ctx, "member 3"))
	if c.commands != 2 {
		t.Errorf("%d commands were carried out, want 2", c.commands)
	}
	d.free(1 << 30)
	if _, err := p.DoGroup(ctx, group, nil); err != nil || c.commands != 4 {
		t.Errorf("with room again: %v, %d commands", err, c.commands)
	}
	l.Close()
	outcomes := map[any]int{}
	for _, ln := range d.lines(t) {
		outcomes[ln["outcome"]]++
	}
	if outcomes["intent"] != 4 || outcomes["ok"] != 4 {
		t.Errorf("%v", outcomes)
	}
	if _, err := p.Do(ctx, put("late"), nil); !errors.As(err, &e) || e.Code != api.AuditFailed {
		t.Errorf("after the log was closed: %v", err)
	}
}

// TestFile: the file is private, follows a file that was moved away, and is not a directory.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	l, err := Open(Options{File: path, MaxSizeBytes: 1 << 20, Keys: KeysPlain, Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	p := Replicator{new(cluster), l}
	if _, err := p.Do(context.Background(), put("first"), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	l.Reopen()
	if _, err := p.Do(context.Background(), put("second"), nil); err != nil {
		t.Fatal(err)
	}
	l.Close()
	for name, want := range map[string]string{path + ".moved": "first", path: "second"} {
		text, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(text), want) || strings.Count(string(text), "\n") < 1 {
			t.Errorf("%s: %s, %v", name, text, err)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
	}
	for _, bad := range []string{dir, filepath.Join(dir, "none", "audit.log")} {
		if _, err := Open(Options{File: bad}); err == nil {
			t.Errorf("%s is an audit log", bad)
		}
	}
	var none *Log
	none.Reopen()
	none.Close()
	if r := none.Begin(Subject{}); r != nil || NewContext(context.Background(), r) != context.Background() || r.Intend(context.Background(), "") != nil {
		t.Error("no log records something")
	}
	none.Begin(Subject{}).End(Ending{Administrative: true})
}

// TestRotation: a full file is moved aside, and old ones are removed.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(Options{File: filepath.Join(dir, "audit.log"), MaxSizeBytes: 1 << 20, MaxBackups: 2, Keys: KeysPlain, Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	p := Replicator{new(cluster), l}
	long := strings.Repeat("x", 4000)
	for range 700 {
		if _, err := p.Do(context.Background(), put(long), nil); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Size() > 1<<20 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f.Name(), info, err)
		}
	}
}
