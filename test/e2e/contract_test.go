package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/kvd-io/kvd/internal/proof"
)

// TestContract sends random sequences of all operations, one after the other, each to a
// random node of three, while nodes are restarted and killed, leaders change, and
// members that were away catch up by log or by snapshot. Every answer must be what a
// plain map gives. KVD_SEED repeats a sequence.
func TestContract(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"pebble", "memory"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			random := seeded(t)
			run := &contractRun{
				t: t, c: newCluster(t, 3, append([]string{"--engine", engine}, small...)...), m: newContractModel(),
				chance: rand.New(rand.NewPCG(random.Uint64(), 1)), counts: make(map[string]int),
			}
			run.g = &contractGenerator{random: random, m: run.m}
			ctx, cancel := context.WithCancel(context.Background())
			var following sync.WaitGroup
			defer following.Wait()
			defer cancel()
			run.follow = func(w *contractWatch) { following.Go(func() { w.run(ctx) }) }
			run.play(contractLength())
		})
	}
}

// contractLength is the number of requests: about half a minute, one, or a quarter of an
// hour on a machine with two cores.
func contractLength() int {
	switch runSize {
	case sizeHuge:
		return 20_000
	case sizeFull:
		return 1500
	}
	return 700
}

// contractRun is one run. What it does to the cluster comes from another source of
// chance than the requests, because it depends on time, too.
type contractRun struct {
	t      *testing.T
	c      *cluster
	m      *contractModel
	g      *contractGenerator
	chance *rand.Rand
	counts map[string]int
	away   *member // is down
	dying  sync.WaitGroup
	back   int // the request at which it comes back
	sent   int
	// answered is the node that answered last.
	answered *member
	// disturbed counts what was done to the cluster.
	disturbed int
	before    []repeated
	watches   []*contractWatch
	follow    func(*contractWatch)
}

func (r *contractRun) play(length int) {
	for r.sent = range length {
		if r.sent%(length/2) == 0 { // the second ones begin at a revision that is compacted
			late := watches(r.t, r.c, r.chance)
			for _, w := range late {
				r.follow(w)
			}
			r.watches = append(r.watches, late...)
		}
		r.disturb()
		if r.sent%200 == 100 {
			r.expire()
		}
		if r.sent%140 == 50 {
			r.step(r.sent / 140)
		}
		req := r.g.next()
		r.counts[req.what]++
		if req.status < 300 && req.what == "txn" {
			r.counts["txn done"]++
		}
		a := r.ask(req)
		r.mustJudge(req, a)
		r.askAnother(req, a)
		r.repeat(req, a)
	}
	r.dying.Wait()
	if r.away != nil {
		restart(r.away)
	}
	proof.Judged(r.t, length)
	r.t.Logf("%d requests: %v; revision %d, compacted up to %d", length, r.counts, r.m.revision, r.m.compact)
	for _, what := range []string{"put", "delete", "append", "incr", "list", "delete range", "batch", "past", "compact", "txn", "txn done", "grant", "revoke", "keep alive", "lock", "release", "expired", "queued lock", "released key", "settings", "member", "snapshot", "kill", "stop", "transfer", "asked again"} {
		if r.counts[what] == 0 {
			r.t.Errorf("no %s in %d requests: the run proves too little", what, length)
		}
	}
	r.judgeEnd()
}

func (r *contractRun) mustJudge(req *contractRequest, a answer) {
	r.t.Helper()
	if err := req.judge(a); err != nil {
		r.t.Fatalf("request %d, %s %s %v\nbody %.300q\n%v\nanswer %v\nthe model is at revision %d", r.sent, req.method, req.path, req.header, req.body, err, a, r.m.revision)
	}
}

// askAnother sends each request to another node as well, so that followers answer as many
// as leaders. A read gets the same answer there, and so does a write, which happened once.
func (r *contractRun) askAnother(req *contractRequest, first answer) {
	r.t.Helper()
	if req.lines != nil {
		return // reads among its lines may see what later ones wrote
	}
	r.counts["asked again"]++
	at, away := r.answered, r.away
	others := slices.DeleteFunc(slices.Clone(r.c.nodes), func(m *member) bool { return m == at || m == away })
	var a answer
	eventually(r.t, "an answer of another node to "+req.method+" "+req.path, func() error {
		m := pick(r.chance, others)
		if a = r.askOne(req, m, r.key()); a.err != nil || a.status >= 500 || a.status == 429 {
			return fmt.Errorf("%v: %v", m, a)
		}
		return nil
	})
	if !req.writes {
		r.mustJudge(req, a)
		return
	}
	replayed := a.header.Get("Idempotency-Replayed") == "true"
	if a.status != first.status || a.body != first.body || !replayed && req.status != 400 { // what is refused at the door is not remembered
		r.t.Fatalf("request %d, %s %s was answered with %v, and at another node with %v, replayed %v", r.sent, req.method, req.path, first, a, replayed)
	}
}

// repeated is a request that may come again.
type repeated struct {
	req    *contractRequest
	key    string
	answer answer
}

// repeatable bounds the requests that may come again much later.
const repeatable = 40

// repeat sends the request again now and then, or one from before, under its
// Idempotency-Key: it gets the answer of the first time, and nothing happens.
func (r *contractRun) repeat(req *contractRequest, a answer) {
	if req.writes && req.status != 400 {
		r.before = append(r.before, repeated{req, r.key(), a})
		if len(r.before) > repeatable {
			r.before = slices.Delete(r.before, 0, 1+r.chance.IntN(repeatable))
		}
	}
	if len(r.before) == 0 || r.chance.IntN(4) != 0 {
		return
	}
	old := pick(r.chance, r.before)
	if r.chance.IntN(2) == 0 {
		old = r.before[len(r.before)-1]
	}
	r.counts["repeat"]++
	again := r.insist(old.req, old.key)
	if again.status != old.answer.status || again.body != old.answer.body || again.header.Get("Idempotency-Replayed") != "true" {
		r.t.Fatalf("request %d: %s %s under the key %s was answered with %v, and again with %v, replayed %q",
			r.sent, old.req.method, old.req.path, old.key, old.answer, again, again.header.Get("Idempotency-Replayed"))
	}
	other := &contractRequest{method: http.MethodPut, path: "/v1/kv/a", body: "another", writes: true}
	if a := r.insist(other, old.key); a.status != 422 || a.code() != "idempotency_mismatch" {
		r.t.Fatalf("request %d: another request under the key %s: %v", r.sent, old.key, a)
	}
}

// key is the Idempotency-Key of the current request.
func (r *contractRun) key() string { return fmt.Sprintf("request-%d", r.sent) }

// judgeEnd compares all that the nodes have with the model, now and at revisions that
// can still be read.
func (r *contractRun) judgeEnd() {
	streams, gaps := 0, 0
	for i, w := range r.watches {
		eventually(r.t, fmt.Sprintf("watch %d has seen everything", i), func() error { return w.judge(r.m) })
		streams, gaps = streams+w.mu.streams, gaps+len(w.mu.gaps)
	}
	if gaps == 0 || streams <= len(r.watches) {
		r.t.Error("no watch met a compaction, or none had to resume: the run proves too little")
	}
	r.t.Logf("%d watches saw %d events, on %d streams and across %d compactions", len(r.watches), len(r.m.events), streams, gaps)
	for _, m := range r.c.nodes {
		m.awaitReady()
		for _, revision := range []uint64{r.m.revision, r.m.compact, r.m.compact + (r.m.revision-r.m.compact)/2} {
			var got struct{ Kvs []object }
			a := get(m, fmt.Sprintf("/v1/kv?start=%%00&limit=10000&revision=%d", revision))
			want := []any{}
			past := &contractModel{keys: r.m.past[revision]}
			for _, k := range past.inRange("", "") {
				want = append(want, pairOf(k, past.keys[k]))
			}
			err := decodeNumbers(a.body, &got)
			if have := anySlice(got.Kvs); err != nil || a.status != 200 || !reflect.DeepEqual(have, want) {
				r.t.Errorf("%v at revision %d has %v, %v\nwant %v", m, revision, a, err, want)
			}
		}
	}
}

func anySlice(from []object) []any {
	out := []any{}
	for _, o := range from {
		out = append(out, o)
	}
	return out
}

// disturb does something to the cluster now and then. At most one member is away, and
// requests go on without it.
func (r *contractRun) disturb() {
	r.dying.Wait()
	if r.away != nil {
		if r.sent >= r.back {
			r.away.start()
			r.away = nil
		}
		return
	}
	if r.chance.IntN(40) != 0 {
		return
	}
	for _, m := range r.c.nodes {
		m.awaitReady() // or a second one would be away
	}
	m := pick(r.chance, r.c.nodes)
	r.disturbed++
	switch what := []string{"kill", "stop", "transfer"}[r.disturbed%3]; what { // each in turn, so that none is left out
	case "kill": // while the next request is on its way
		r.dying.Go(m.kill)
		r.leave(what, m)
	case "stop":
		m.stop()
		r.leave(what, m)
	default:
		r.counts[what]++
		a := send(pick(r.chance, r.c.nodes), http.MethodPost, fmt.Sprintf("/v1/leader?to=%d", m.id), "")
		// A member that has just returned may serve before the leader has a connection to it.
		if a.err != nil || a.status != 204 && a.status != 503 && a.status != 504 && a.code() != "unsafe_change" {
			r.t.Fatalf("hand leadership over to %v: %v", m, a)
		}
	}
}

func (r *contractRun) leave(what string, m *member) {
	r.counts[what]++
	r.away, r.back = m, r.sent+1+r.chance.IntN(90)
}

// ask sends the request to a random node until there is a definite answer.
func (r *contractRun) ask(req *contractRequest) answer {
	r.t.Helper()
	return r.insist(req, r.key())
}

func (r *contractRun) insist(req *contractRequest, key string) (a answer) {
	r.t.Helper()
	req.sent = 0
	eventually(r.t, "a definite answer to "+req.method+" "+req.path, func() error {
		req.sent++
		m := pick(r.chance, r.c.nodes)
		a = r.askOne(req, m, key)
		switch {
		case a.refusedBeforeSent(), a.err == nil && (a.status == 503 || a.status == 429):
			return fmt.Errorf("%v: %v", m, a) // certainly without effect
		case a.err == nil && a.status != 504:
			r.answered = m
			return nil
		}
		return fmt.Errorf("%v: %v", m, a)
	})
	return a
}

func (r *contractRun) askOne(req *contractRequest, m *member, key string) answer {
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	header := slices.Clone(req.header)
	if req.writes {
		header = append(header, "Idempotency-Key", key)
	}
	a := roundTrip(ctx, m, req.method, req.path, strings.NewReader(req.body), header...)
	if req.lines != nil && a.status == 200 && strings.Count(a.body, `{"n":`) != len(req.lines) || undecided.MatchString(a.body) {
		a.status = 504 // the rest of the lines is to be sent again
	}
	return a
}

// undecided finds lines of a batch after which it stopped.
var undecided = regexp.MustCompile(`(?m)^\{"n":\d+,"status":(503|504|429)`)

// judge compares an answer with what the model says.
func (req *contractRequest) judge(a answer) error {
	if a.err != nil {
		return a.err
	}
	if a.status != req.status {
		return fmt.Errorf("status %d, want %d (%s)", a.status, req.status, req.code)
	}
	switch {
	case req.code != "":
		return judgeProblem(a.body, req.code, req.fields)
	case req.raw != nil:
		if a.body != *req.raw || a.header.Get("Etag") != fmt.Sprintf(`"%d"`, req.etag) {
			return fmt.Errorf("want %.200q with etag %d", *req.raw, req.etag)
		}
		return nil
	case req.lines != nil:
		return req.judgeLines(a.body)
	case req.json == nil:
		return nil
	}
	var got object
	if err := decodeNumbers(a.body, &got); err != nil {
		return err
	}
	if _, next := got["next"]; next != req.next {
		return fmt.Errorf("next: %v, want %v", next, req.next)
	}
	delete(got, "next")
	if req.ttl {
		delete(got, "ttl")
	}
	if err := dropped(got, req.drop); err != nil {
		return err
	}
	if req.after != nil {
		if err := req.after(got); err != nil {
			return err
		}
	}
	return judgeDocument(got, req.json, req.inner)
}

func judgeDocument(got, want object, inner bool) error {
	if inner {
		if err := stripRevisions(got, got["revision"]); err != nil {
			return err
		}
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("got  %s\nwant %s", encode(got), encode(want))
	}
	return nil
}

// stripRevisions removes the revisions of the results of a transaction. A result never
// names a later one than the transaction itself.
func stripRevisions(o object, of any) error {
	results, _ := o["results"].([]any)
	limit, err := revisionOf(of)
	if err != nil {
		return err
	}
	for _, res := range results {
		one, ok := res.(object)
		if !ok {
			return fmt.Errorf("a result is %v", res)
		}
		if revision, has := one["revision"]; has {
			if n, err := revisionOf(revision); err != nil || n > limit {
				return fmt.Errorf("a result has revision %v in a transaction of revision %v, %v", revision, of, err)
			}
			delete(one, "revision")
		}
		if err := stripRevisions(one, of); err != nil {
			return err
		}
	}
	return nil
}

func revisionOf(v any) (uint64, error) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, fmt.Errorf("the revision is %v", v)
	}
	return strconv.ParseUint(n.String(), 10, 64)
}

func judgeProblem(body, code string, fields object) error {
	var got object
	if err := decodeNumbers(body, &got); err != nil {
		return err
	}
	if got["code"] != code {
		return fmt.Errorf("code %v, want %s", got["code"], code)
	}
	for name, want := range fields {
		if !reflect.DeepEqual(got[name], want) {
			return fmt.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	return nil
}

func (req *contractRequest) judgeLines(body string) error {
	lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
	if len(lines) != len(req.lines) {
		return fmt.Errorf("%d lines, want %d", len(lines), len(req.lines))
	}
	for i, text := range lines {
		var got object
		if err := decodeNumbers(text, &got); err != nil {
			return err
		}
		want := req.lines[i]
		if want.read && req.sent > 1 {
			continue
		}
		if got["n"] != number(uint64(i+1)) || got["status"] != number(uint64(want.status)) {
			return fmt.Errorf("line %d: %s, want status %d (%s)", i+1, text, want.status, want.code)
		}
		delete(got, "n")
		delete(got, "status")
		if got["replayed"] == true && req.sent > 1 {
			delete(got, "replayed")
		}
		if want.code != "" {
			if got["code"] != want.code {
				return fmt.Errorf("line %d: %s, want %s", i+1, text, want.code)
			}
		} else if err := judgeDocument(got, want.json, true); err != nil {
			return fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return nil
}

// decodeNumbers decodes one JSON document and keeps its numbers as text.
func decodeNumbers(text string, into any) error {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("decode %.200q: %w", text, err)
	}
	if d.More() {
		return errors.New("there is more than one document")
	}
	return nil
}
