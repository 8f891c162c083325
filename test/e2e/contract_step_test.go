package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// steps are longer stories about requests under an Idempotency-Key, between the random
// ones. None of them is left out.
var steps = []struct {
	name string
	tell func(*contractRun)
}{
	{"queued lock", (*contractRun).queueForLock},
	{"released key", (*contractRun).releaseKey},
	{"settings", (*contractRun).changeSettings},
	{"member", (*contractRun).addLearner},
	{"snapshot", (*contractRun).lagBehind},
}

func (r *contractRun) step(number int) {
	s := steps[number%len(steps)]
	r.counts[s.name]++
	s.tell(r)
}

// mustInsist is insist for a request whose status is known.
func (r *contractRun) mustInsist(status int, req *contractRequest, key string) answer {
	r.t.Helper()
	a := r.insist(req, r.key()+"-"+key)
	if a.status != status {
		r.t.Fatalf("%s %s: %v, want status %d", req.method, req.path, a, status)
	}
	return a
}

// mustRepeat sends a request again under its key, which must give the same answer.
func (r *contractRun) mustRepeat(first answer, req *contractRequest, key string) {
	r.t.Helper()
	again := r.mustInsist(first.status, req, key)
	if again.body != first.body || again.header.Get("Idempotency-Replayed") != "true" {
		r.t.Fatalf("%s %s was answered with %v, and again with %v, replayed %q", req.method, req.path, first, again, again.header.Get("Idempotency-Replayed"))
	}
}

func post(path, body string) *contractRequest {
	return &contractRequest{method: http.MethodPost, path: path, body: body, writes: true}
}

func deletion(path string) *contractRequest {
	return &contractRequest{method: http.MethodDelete, path: path, writes: true}
}

// queueForLock sends a request that waits for a lock to two nodes at once. It has one
// place in the queue, and both get the same token when their turn comes.
func (r *contractRun) queueForLock() {
	holder, waiter := 1000+2*r.sent, 1001+2*r.sent
	for _, id := range []int{holder, waiter} {
		r.mustInsist(201, post("/v1/leases", fmt.Sprintf(`{"id":%d,"ttl":"1h"}`, id)), fmt.Sprint("grant-", id))
	}
	var first, last held
	r.decode(r.mustInsist(200, post(fmt.Sprintf("/v1/locks/queue?lease=%d", holder), ""), "holder"), &first)
	queued := post(fmt.Sprintf("/v1/locks/queue?lease=%d&wait=1m", waiter), "")
	var answers [2]answer
	var waits sync.WaitGroup
	for i := range answers {
		waits.Go(func() { answers[i] = r.waitAt(i, queued, r.key()+"-queued") })
	}
	eventually(r.t, "the request waits", func() error {
		a := r.insist(&contractRequest{method: http.MethodGet, path: "/v1/locks/queue"}, "")
		if !strings.Contains(a.body, `"waiting":1`) {
			return errors.New(a.body)
		}
		return nil
	})
	r.mustInsist(204, deletion(fmt.Sprintf("/v1/locks/queue?lease=%d", holder)), "release")
	waits.Wait()
	for _, a := range append(answers[:], r.mustInsist(200, queued, "queued")) {
		r.decode(a, &last)
		if a.status != 200 || last.Lease != uint64(waiter) || last.Token <= first.Token || a.body != answers[0].body {
			r.t.Fatalf("the requests that waited got %v, %v, after token %d", answers, a, first.Token)
		}
	}
	r.m.token = max(r.m.token, last.Token)
	for _, id := range []int{holder, waiter} {
		r.mustInsist(200, deletion(fmt.Sprint("/v1/leases/", id)), fmt.Sprint("revoke-", id))
	}
}

// waitAt sends a request that waits to one node after the other, from number i on, until
// one answers.
func (r *contractRun) waitAt(i int, req *contractRequest, key string) (a answer) {
	eventually(r.t, "an answer to who waits", func() error {
		m := r.c.nodes[i%len(r.c.nodes)]
		i++
		ctx, cancel := context.WithTimeout(context.Background(), 2*requestLimit)
		defer cancel()
		if a = roundTrip(ctx, m, req.method, req.path, nil, "Idempotency-Key", key); a.err != nil || a.status >= 429 {
			return fmt.Errorf("%v: %v", m, a)
		}
		return nil
	})
	return a
}

func (r *contractRun) decode(a answer, into any) {
	r.t.Helper()
	if err := decodeNumbers(a.body, into); err != nil {
		r.t.Fatalf("%v: %v", a, err)
	}
}

// releaseKey gives up the key of an earlier request, which is then the key of another one.
func (r *contractRun) releaseKey() {
	if len(r.before) == 0 {
		r.t.Fatal("no request is remembered")
	}
	old := r.before[0].key
	r.before = r.before[1:]
	for i, key := range []string{r.key() + "-releasing", old} {
		o := &contractOp{kind: "put", key: "released", value: fmt.Sprint(r.sent, " ", i)}
		req := r.g.single(o, http.MethodPut, url.Values{})
		if req.body = o.value; i == 0 {
			req.header = append(req.header, "Idempotency-Release", old)
		}
		a := r.insist(req, key)
		if err := req.judge(a); err != nil {
			r.t.Fatalf("PUT %s %v under the key %s: %v\nanswer %v", req.path, req.header, key, err, a)
		}
		if req.sent == 1 && a.header.Get("Idempotency-Replayed") != "" {
			r.t.Fatalf("the key %s was released, and the answer is that of an earlier request: %v", key, a)
		}
	}
}

// changeSettings repeats a change of settings after another one: it must not come back.
func (r *contractRun) changeSettings() {
	change := func(revisions int) *contractRequest {
		return &contractRequest{method: http.MethodPatch, path: "/v1/settings", body: fmt.Sprintf(`{"retention_revisions":%d}`, revisions), writes: true}
	}
	first := r.mustInsist(200, change(20_000+r.sent), "one")
	r.mustInsist(200, change(30_000), "two")
	r.mustRepeat(first, change(20_000+r.sent), "one")
	if a := r.insist(&contractRequest{method: http.MethodGet, path: "/v1/settings"}, ""); !strings.Contains(a.body, `"retention_revisions":30000`) {
		r.t.Fatalf("a repeat has undone a later change: %v", a)
	}
}

// addLearner adds and removes a member, each twice.
func (r *contractRun) addLearner() {
	add := post("/v1/members", fmt.Sprintf(`{"peer_urls":["http://%s"],"learner":true}`, loopback(freePort(r.t))))
	first := r.mustInsist(201, add, "add")
	r.mustRepeat(first, add, "add")
	var added struct{ ID uint64 }
	r.decode(first, &added)
	remove := deletion(fmt.Sprint("/v1/members/", added.ID))
	a := r.insist(remove, r.key()+"-remove")
	if a.status/100 != 2 {
		r.t.Fatalf("remove the learner: %v", a)
	}
	r.mustRepeat(a, remove, "remove")
}

// lagBehind keeps a follower away until the others have released the log that it lacks, so
// that it comes back by snapshot. A refused put is in the log, and changes nothing.
func (r *contractRun) lagBehind() {
	r.dying.Wait()
	if r.away == nil {
		r.away = pick(r.chance, r.c.followers())
		r.away.stop()
	}
	built := r.c.count(builtSnapshot)
	ballast, sent := strings.Repeat("x", ballastBytes), 0
	r.c.releaseLog(r.t, func() {
		path := fmt.Sprintf("/v1/kv/ballast?if_revision=%d", uint64(1)<<52)
		r.mustInsist(412, &contractRequest{method: http.MethodPut, path: path, body: ballast, writes: true}, fmt.Sprint("ballast-", sent))
		sent++
	})
	restart(r.away)
	r.away = nil
	eventually(r.t, "a snapshot is built for who was away", func() error {
		if n := r.c.count(builtSnapshot); n <= built {
			return fmt.Errorf("%d snapshots", n)
		}
		return nil
	})
}
