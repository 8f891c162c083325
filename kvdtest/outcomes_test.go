package kvdtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi"
)

// TestRefusalsLeaveNoTrace sends requests of all kinds to three nodes, each with a name of
// its own that it leaves in the state if it is carried out, while nodes are stopped, killed,
// and cut off, the leadership moves, and the store is full at times. Then no request that was
// refused may have left its name, and every request that was answered with success must have.
// The run goes on until it has seen each refusal that faults and clients can cause.
func TestRefusalsLeaveNoTrace(t *testing.T) {
	r := newOutcomes(t)
	r.load(func() {
		for n := 0; ; n++ {
			missing := r.missing()
			if n >= 2*len(outcomeFaults) && len(missing) == 0 {
				return
			}
			if n > 30*len(outcomeFaults) {
				t.Fatalf("after %d faults nothing was answered with %v", n, missing)
			}
			f := outcomeFaults[n%len(outcomeFaults)]
			f.cause(r)
			r.await(60)
		}
	})
	r.refuseUnsafeChange()
	r.judge()
}

// certain are the refusals that the run must see. Of the others, internal_error is a bug,
// and those of rights and of reads are the matter of other tests.
var certain = []api.Code{
	api.BadRequest, api.KeyNotFound, api.LeaseNotFound, api.LockNotFound, api.MemberNotFound, api.LeaseExists, api.LockHeld, api.MemberExists,
	api.MemberRemoved, api.PreconditionFailed, api.TooLarge, api.IdempotencyMismatch, api.FutureRevision,
	api.Overloaded, api.NoLeader, api.Starting, api.Stopping, api.NoSpace, api.Timeout, api.ReadTimeout,
}

// outcomeFaults are what happens to the cluster, in this order again and again.
var outcomeFaults = []struct {
	name  string
	cause func(*outcomes)
}{
	{"leader cut off", func(r *outcomes) { r.cut(r.leader()) }},
	{"follower cut off", func(r *outcomes) { r.cut(r.follower()) }},
	{"leader stopped", func(r *outcomes) { r.restart((*Node).Stop, r.leader()) }},
	{"leadership moved", func(r *outcomes) {
		r.mustSend(http.MethodPost, fmt.Sprint("/v1/leader?to=", r.follower().cfg.ID), "", http.StatusNoContent)
	}},
	{"store full", func(r *outcomes) {
		r.mustSend(http.MethodPatch, "/v1/settings", `{"quota_bytes":1048576}`, http.StatusOK)
		r.mustSend(http.MethodPut, "/v1/kv/ballast", strings.Repeat("x", 1<<20-1024), http.StatusCreated, http.StatusOK, http.StatusServiceUnavailable)
		r.await(60)
		r.mustSend(http.MethodPatch, "/v1/settings", `{"quota_bytes":0}`, http.StatusOK)
	}},
	{"leader killed", func(r *outcomes) { r.restart((*Node).Kill, r.leader()) }},
	{"follower stopped", func(r *outcomes) { r.restart((*Node).Stop, r.follower()) }},
	{"two killed", func(r *outcomes) { r.restart((*Node).Kill, r.leader(), r.follower()) }},
}

// outcomes is one run.
type outcomes struct {
	t     *testing.T
	nodes Nodes
	// endpoints are those of the nodes, for goroutines other than that of the test.
	endpoints []string
	rng       *rand.Rand // of the faults
	http      *http.Client

	mu struct {
		sync.Mutex
		told  []told
		codes map[api.Code]int
		done  chan struct{} // a token for each answer, capacity 1
	}
	answered int // under mu
}

// told is what a client was told about a request, or about a part of it.
type told struct {
	trace   string // what it leaves in the state
	request string
	status  int // 0: nothing
	code    api.Code
}

func newOutcomes(t *testing.T) *outcomes {
	t.Helper()
	var o options
	nodes := plan(t, 3, &o)
	for _, n := range nodes {
		// Few requests at a time, so that some have to wait and are refused.
		n.tune = func(o *httpapi.Options) { o.MaxInFlight = 6 }
		n.begin()
	}
	for _, n := range nodes {
		n.await()
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	transport := &http.Transport{MaxIdleConnsPerHost: 32}
	t.Cleanup(transport.CloseIdleConnections)
	r := &outcomes{t: t, nodes: nodes, endpoints: nodes.Endpoints(), rng: rand.New(rand.NewPCG(seed, 0)), http: &http.Client{Transport: transport}}
	r.mu.codes = make(map[api.Code]int)
	r.mu.done = make(chan struct{}, 1)
	r.mustSend(http.MethodPatch, "/v1/settings", `{"quota_bytes":0}`, http.StatusOK)
	r.mustSend(http.MethodPost, "/v1/leases", `{"id":7,"ttl":"1h"}`, http.StatusCreated)
	r.mustSend(http.MethodPost, "/v1/locks/taken?lease=7", "", http.StatusOK)
	r.mustSend(http.MethodPost, "/v1/members", `{"id":1000,"peer_urls":["http://127.0.0.1:1"],"learner":true}`, http.StatusCreated)
	r.mustSend(http.MethodDelete, "/v1/members/1000", "", http.StatusNoContent, http.StatusOK)
	r.mustSend(http.MethodPost, "/v1/members", `{"id":1001,"peer_urls":["http://127.0.0.1:2"],"learner":true}`, http.StatusCreated)
	return r
}

// load runs clients until during has returned.
func (r *outcomes) load(during func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var clients sync.WaitGroup
	for id := range 16 {
		rng := rand.New(rand.NewPCG(r.rng.Uint64(), 1))
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				r.request(rng, fmt.Sprintf("%d-%d", id, n))
			}
		})
	}
	defer clients.Wait()
	defer cancel()
	during()
}

// request sends a request of a random kind.
func (r *outcomes) request(rng *rand.Rand, name string) {
	timeout := []string{"5s", "1s", "300ms", "20ms", "3ms"}[rng.IntN(5)]
	send := func(trace, method, target, body string, header ...string) {
		sep := "?"
		if strings.Contains(target, "?") {
			sep = "&"
		}
		a := r.send(r.endpoints[rng.IntN(len(r.endpoints))], method, target+sep+"timeout="+timeout, body, header...)
		r.note(told{trace, method + " " + target, a.status, a.problem.Code})
	}
	key := "k " + name
	path := "/v1/kv/k%20" + name
	switch rng.IntN(23) {
	case 0, 1, 2:
		send(key, http.MethodPut, path, name)
	case 3:
		send(key, http.MethodPost, path+"?incr=1", "")
	case 4:
		send("append "+name, http.MethodPost, "/v1/kv/text?append", name+";")
	case 5:
		send(key, http.MethodPost, "/v1/txn", fmt.Sprintf(`{"then":[{"put":{"key":"k %s","value":"a"}},{"append":{"key":"text","value":""}}]}`, name))
	case 6:
		r.batch(rng, name)
	case 7:
		id := 1000 + rng.Int64N(1<<50)
		send(fmt.Sprint("lease ", id), http.MethodPost, "/v1/leases", fmt.Sprintf(`{"id":%d,"ttl":"1h"}`, id))
	case 8:
		send("lock "+name, http.MethodPost, "/v1/locks/"+name+"?ttl=1h", "")
	case 9: // what comes first, the answer or the wait, is left open
		send("", http.MethodPost, "/v1/locks/taken?ttl=1h&wait=20ms", name)
	case 10:
		send(key, http.MethodPut, path+"?if_revision=999999", name)
	case 11:
		send(key, http.MethodPut, path, strings.Repeat("x", 2<<20))
	case 12: // kvd gives leases small ids, and case 7 smaller ones than this
		send(key, http.MethodPut, path+"?lease=2251799813685248", name)
	case 13:
		send(key, http.MethodPost, "/v1/txn", fmt.Sprintf(`{"then":[{"put":{"key":"k %s","value":"a"}},{"put":{"key":"absent","keep_value":true}}]}`, name))
	case 14:
		send(key, http.MethodPost, "/v1/txn", fmt.Sprintf(`{"then":[{"put":{"key":"k %s","value":"a"}},{"get":{"key":"a","revision":99999999}}]}`, name))
	case 15:
		send(key, http.MethodPost, "/v1/txn", fmt.Sprintf(`{"then":[{"put":{"key":"k %s","value":"a"}},{"put":{"kee":"a"}}]}`, name))
	case 16:
		send("k once", http.MethodPut, "/v1/kv/k%20once", "first", "Idempotency-Key", "once")
		send(key, http.MethodPut, path, name, "Idempotency-Key", "once")
	case 17:
		send("", http.MethodPost, "/v1/leases", `{"id":7,"ttl":"1h"}`)
		send("", http.MethodDelete, "/v1/locks/taken?lease=2251799813685248", "")
	case 18:
		send("", http.MethodPost, "/v1/members", `{"peer_urls":["http://127.0.0.1:2"],"learner":true}`)
		send("", http.MethodPost, "/v1/members", `{"id":1000,"peer_urls":["http://127.0.0.1:3"],"learner":true}`)
		send("", http.MethodDelete, "/v1/members/77", "")
	default:
		send("", http.MethodGet, "/v1/kv/text", "")
	}
}

// batch sends lines, each of which has an answer. The last answer says which line was the
// first that was not attempted.
func (r *outcomes) batch(rng *rand.Rand, name string) {
	const lines = 20
	var body strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintf(&body, `{"put":{"key":"k %s/%d","value":""}}`+"\n", name, i)
	}
	a := r.send(r.endpoints[rng.IntN(len(r.endpoints))], http.MethodPost, "/v1/batch", body.String())
	answers := make(map[int]told)
	for i := 1; i <= lines; i++ {
		answers[i] = told{trace: fmt.Sprintf("k %s/%d", name, i), request: fmt.Sprint("line ", i, " of a batch")}
		if a.status != http.StatusOK {
			answers[i] = told{answers[i].trace, answers[i].request, a.status, a.problem.Code}
		}
	}
	if a.status == http.StatusOK {
		for line := range strings.Lines(a.body) {
			var doc struct {
				N                 int
				Status            int
				Code              api.Code
				FirstNotAttempted int `json:"first_not_attempted"`
			}
			if err := json.Unmarshal([]byte(line), &doc); err != nil {
				break // the connection ended
			}
			if l, ok := answers[doc.N]; ok {
				answers[doc.N] = told{l.trace, l.request, doc.Status, doc.Code}
			}
			for i := doc.FirstNotAttempted; i > 0 && i <= lines; i++ {
				answers[i] = told{answers[i].trace, answers[i].request, http.StatusServiceUnavailable, "not attempted"}
			}
		}
	}
	r.note(slices.Collect(maps.Values(answers))...)
}

// reply is what came back.
type reply struct {
	status  int // 0: the connection broke, and the outcome is unknown
	body    string
	problem struct {
		Code          api.Code
		Status        int
		Title, Detail string
	}
}

// send sends a request. A connection that was refused counts as 503: no byte was sent.
func (r *outcomes) send(endpoint, method, target, body string, header ...string) (a reply) {
	req, err := http.NewRequestWithContext(r.t.Context(), method, endpoint+target, strings.NewReader(body))
	if err != nil {
		r.t.Error(err)
		return a
	}
	req.GetBody = nil // nobody repeats a request but its client
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.http.Do(req)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			a.status = http.StatusServiceUnavailable
		}
		return a
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if a.body = string(b); err != nil && resp.StatusCode < 400 && target == "/v1/batch" {
		a.status = resp.StatusCode
		return a
	}
	if err != nil {
		return a
	}
	if a.status = resp.StatusCode; a.status >= 400 {
		if err := json.Unmarshal(b, &a.problem); err != nil || a.problem.Status != a.status || a.problem.Code == "" || a.problem.Title == "" || a.problem.Detail == "" {
			r.t.Errorf("%s %s: status %d with %s: %v", method, target, a.status, b, err)
		}
	}
	return a
}

func (r *outcomes) note(all ...told) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range all {
		if a.code != "" {
			r.mu.codes[a.code]++
		}
		if a.trace != "" {
			r.mu.told = append(r.mu.told, a)
		}
	}
	r.answered++
	select {
	case r.mu.done <- struct{}{}:
	default:
	}
}

// await waits for n further answers.
func (r *outcomes) await(n int) {
	r.t.Helper()
	limit := time.NewTimer(startTimeout)
	defer limit.Stop()
	for want := r.count() + n; r.count() < want; {
		select {
		case <-r.mu.done:
		case <-limit.C:
			r.t.Fatalf("%d requests were answered, want %d", r.count(), want)
		}
	}
}

func (r *outcomes) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answered
}

func (r *outcomes) missing() []api.Code {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(certain), func(c api.Code) bool { return r.mu.codes[c] > 0 })
}

// until repeats what cannot be done at every moment.
func (r *outcomes) until(what string, done func() bool) {
	r.t.Helper()
	limit, tick := time.NewTimer(startTimeout), time.NewTicker(tickInterval)
	defer limit.Stop()
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			r.t.Fatalf("%s: not within %v", what, startTimeout)
		}
	}
}

// mustSend sends a request until it is answered with one of the statuses.
func (r *outcomes) mustSend(method, target, body string, want ...int) {
	r.t.Helper()
	var a reply
	r.until(method+" "+target, func() bool {
		a = r.send(r.nodes[r.rng.IntN(len(r.nodes))].Endpoint, method, target, body)
		return slices.Contains(want, a.status)
	})
}

func (r *outcomes) leader() (leader *Node) {
	r.t.Helper()
	r.until("a leader", func() bool {
		for _, n := range r.nodes {
			if n.running.node.IsLeader() {
				leader = n
			}
		}
		return leader != nil
	})
	return leader
}

func (r *outcomes) follower() *Node {
	r.t.Helper()
	leader := r.leader()
	others := slices.DeleteFunc(slices.Clone(r.nodes), func(n *Node) bool { return n == leader })
	return others[r.rng.IntN(len(others))]
}

func (r *outcomes) cut(n *Node) {
	n.Cut()
	r.await(120)
	n.Mend()
}

// restart ends nodes and starts them again while clients go on. They answer before they
// serve.
func (r *outcomes) restart(end func(*Node), nodes ...*Node) {
	for _, n := range nodes {
		end(n)
	}
	r.await(40)
	for _, n := range nodes {
		n.begin()
	}
	r.await(10)
	for _, n := range nodes {
		n.await()
	}
}

// refuseUnsafeChange removes a member whose loss would leave no quorum: the leader has not
// heard from another one.
func (r *outcomes) refuseUnsafeChange() {
	leader, away := r.leader(), r.follower()
	away.Stop()
	third := slices.DeleteFunc(slices.Clone(r.nodes), func(n *Node) bool { return n == leader || n == away })[0]
	target := fmt.Sprint("/v1/members/", third.cfg.ID)
	r.until("the leader misses the member that is down", func() bool {
		a := r.send(leader.Endpoint, http.MethodGet, "/v1/members", "")
		var doc struct {
			Members []struct {
				ID        uint64
				Reachable bool
			}
		}
		if err := json.Unmarshal([]byte(a.body), &doc); err != nil {
			return false
		}
		for _, m := range doc.Members {
			if m.ID == away.cfg.ID {
				return !m.Reachable
			}
		}
		return false
	})
	r.until("the change is refused as unsafe", func() bool {
		return r.send(leader.Endpoint, http.MethodDelete, target, "").problem.Code == api.UnsafeChange
	})
	away.Start()
	if a := r.send(leader.Endpoint, http.MethodGet, "/v1/members", ""); strings.Count(a.body, `"id":`) != len(r.nodes)+1 {
		r.t.Errorf("after changes that were refused, the members are %s", a.body)
	}
}

// judge compares what clients were told with the state.
func (r *outcomes) judge() {
	there := r.state()
	counts := make(map[string]int)
	for _, a := range r.mu.told {
		refused := a.status >= 400 && a.status < 500 || a.status == http.StatusServiceUnavailable
		switch {
		case a.status/100 == 2 && !there[a.trace]:
			r.t.Errorf("%s was answered with %d, and %q is not there", a.request, a.status, a.trace)
		case refused && there[a.trace] && a.trace != "k once":
			r.t.Errorf("%s was refused with %d %s, and %q is there", a.request, a.status, a.code, a.trace)
		case a.status/100 == 2:
			counts["done"]++
		case refused:
			counts["refused"]++
		case there[a.trace]:
			counts["unknown and done"]++
		default:
			counts["unknown and not done"]++
		}
	}
	r.t.Logf("%v; answers with codes: %v", counts, r.mu.codes)
	for _, what := range []string{"done", "refused", "unknown and done", "unknown and not done"} {
		if counts[what] == 0 {
			r.t.Errorf("no request was %s: the run proves too little", what)
		}
	}
}

// state returns all traces.
func (r *outcomes) state() map[string]bool {
	there := make(map[string]bool)
	e := r.leader().Endpoint
	for line := range strings.Lines(r.send(e, http.MethodGet, "/v1/kv?prefix=k&keys_only", "", "Accept", "application/x-ndjson").body) {
		var doc struct{ Key string }
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			r.t.Fatal(err)
		}
		there[doc.Key] = true
	}
	for name := range strings.SplitSeq(r.send(e, http.MethodGet, "/v1/kv/text", "").body, ";") {
		there["append "+name] = true
	}
	for _, list := range []string{"leases", "locks"} {
		for next := ""; ; {
			var doc struct {
				Leases []struct{ ID json.Number }
				Locks  []struct{ Name string }
				Next   string
			}
			a := r.send(e, http.MethodGet, "/v1/"+list+"?limit=1000"+next, "")
			if err := json.Unmarshal([]byte(a.body), &doc); err != nil || a.status != http.StatusOK {
				r.t.Fatalf("%v: %v", a, err)
			}
			for _, l := range doc.Leases {
				there["lease "+l.ID.String()] = true
			}
			for _, l := range doc.Locks {
				there["lock "+l.Name] = true
			}
			if doc.Next == "" {
				break
			}
			next = "&cursor=" + doc.Next
		}
	}
	return there
}
