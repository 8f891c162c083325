package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// contractLeases are the ids that clients choose. The last one does not fit into a
// double.
var contractLeases = []uint64{7, 8, 9, 1<<60 + 1}

var contractLocks = []string{"l", "a/b", "\xff"}

// longTTL does not end during a test.
const longTTL = "1h0m0s"

// grant creates a lease with an id of the client's choice.
func (g *contractGenerator) grant() *contractRequest {
	id := pick(g.random, contractLeases)
	r := &contractRequest{what: "grant", method: http.MethodPost, path: "/v1/leases", writes: true,
		body: encode(object{"id": leaseNumber(id), "ttl": "1h"})}
	if g.m.leases[id] {
		return r.outcome(0, nil, refusal(409, "lease_exists"))
	}
	g.m.leases[id] = true
	return r.outcome(201, object{"id": leaseNumber(id), "ttl": longTTL}, nil)
}

// lease reads, keeps alive, lists, or revokes leases.
func (g *contractGenerator) lease() *contractRequest {
	id := pick(g.random, contractLeases)
	path := "/v1/leases/" + strconv.FormatUint(id, 10)
	gone := refusal(404, "lease_not_found")
	if g.m.leases[id] {
		gone = nil
	}
	switch g.random.IntN(6) {
	case 0:
		r := &contractRequest{what: "revoke", method: http.MethodDelete, path: path, writes: true}
		if gone != nil {
			return r.outcome(0, nil, gone)
		}
		deleted := g.m.endLease(id)
		return r.outcome(200, object{"deleted": number(deleted), "revision": number(g.m.revision)}, nil)
	case 1, 2:
		r := &contractRequest{what: "keep alive", method: http.MethodPost, path: path + "/keepalive"}
		return r.outcome(200, object{"id": leaseNumber(id), "ttl": longTTL}, gone)
	case 3:
		leases := []any{}
		for _, id := range contractLeases {
			if g.m.leases[id] {
				leases = append(leases, g.m.infoOf(id))
			}
		}
		r := &contractRequest{what: "leases", method: http.MethodGet, path: "/v1/leases"}
		return r.outcome(200, object{"leases": leases}, nil)
	}
	info := g.m.infoOf(id)
	keys := []any{}
	for _, k := range g.m.keysOf(id) {
		o := object{}
		setBytes(o, "key", k)
		keys = append(keys, o)
	}
	info["keys"] = keys
	r := &contractRequest{what: "lease", method: http.MethodGet, path: path + "?keys"}
	if gone == nil {
		r.drop = []string{"remaining"}
	}
	return r.outcome(200, info, gone)
}

func (m *contractModel) infoOf(id uint64) object {
	return object{"id": leaseNumber(id), "ttl": longTTL, "key_count": number(uint64(len(m.keysOf(id)))), "lock_count": number(m.locksOf(id))}
}

// lock takes, releases, or reads a lock, without waiting.
func (g *contractGenerator) lock() *contractRequest {
	name, id := pick(g.random, contractLocks), pick(g.random, contractLeases)
	path := "/v1/locks/" + escaped(name)
	held := g.m.locks[name]
	switch g.random.IntN(4) {
	case 0:
		r := &contractRequest{what: "release", method: http.MethodDelete, path: fmt.Sprintf("%s?lease=%d", path, id), writes: true}
		if held == nil || held.lease != id {
			return r.outcome(0, nil, refusal(404, "lock_not_found"))
		}
		delete(g.m.locks, name)
		return r.outcome(204, nil, nil)
	case 1:
		r := &contractRequest{what: "read lock", method: http.MethodGet, path: path}
		if held == nil {
			return r.outcome(0, nil, refusal(404, "lock_not_found"))
		}
		holder := object{"lease": leaseNumber(held.lease), "token": number(held.token)}
		setBytes(holder, "text", held.text)
		out := object{"holder": holder, "waiting": number(0), "queue": []any{}}
		setBytes(out, "name", name)
		return r.outcome(200, out, nil)
	}
	return g.acquire(name, path, id)
}

func (g *contractGenerator) acquire(name, path string, id uint64) *contractRequest {
	text := fmt.Sprint("holder ", g.random.IntN(100))
	held := g.m.locks[name]
	r := &contractRequest{what: "lock", method: http.MethodPost, path: fmt.Sprintf("%s?lease=%d", path, id), body: text, writes: true}
	out := object{"lease": leaseNumber(id)}
	setBytes(out, "name", name)
	switch {
	case held != nil && held.lease == id: // asking again
		out["token"] = number(held.token)
		return r.outcome(200, out, nil)
	case !g.m.leases[id]: // whether the lock is free or not
		return r.outcome(0, nil, refusal(404, "lease_not_found"))
	case held != nil:
		return r.outcome(0, nil, &failure{409, "lock_held", object{"token": number(held.token)}})
	}
	held = &heldLock{lease: id, text: text}
	g.m.locks[name] = held
	r.after = func(got object) (err error) {
		held.token, err = revisionOf(got["token"])
		delete(got, "token")
		if err == nil && held.token <= g.m.token {
			err = fmt.Errorf("token %d after %d", held.token, g.m.token)
		}
		g.m.token = held.token
		return err
	}
	return r.outcome(200, out, nil)
}

// expire lets a lease end by itself, and what is bound to it with it.
func (r *contractRun) expire() {
	id := uint64(100 + r.sent)
	a := r.insist(&contractRequest{method: http.MethodPost, path: "/v1/leases", writes: true, body: encode(object{"id": id, "ttl": "1s"})}, r.key()+"-grant")
	if a.status != 201 {
		r.t.Fatalf("grant: %v", a)
	}
	r.m.leases[id] = true
	bind := contractOp{kind: "txn", onTrue: []contractOp{
		{kind: "put", key: "a/1", value: "bound", lease: id}, {kind: "put", key: "b", value: "bound", lease: id}, {kind: "append", key: "z", value: "free"},
	}}
	req := &contractRequest{method: http.MethodPost, path: "/v1/txn", body: encode(bind.txnDocument()), writes: true}
	switch a := r.insist(req, r.key()+"-bind"); {
	case a.status == 200:
		if _, f := r.m.alone(&bind); f != nil {
			r.t.Fatal(f)
		}
	case a.code() != "lease_not_found": // it may have ended already, on a slow machine
		r.t.Fatalf("bind: %v", a)
	}
	eventually(r.t, "the lease ends", func() error {
		a := r.insist(&contractRequest{method: http.MethodGet, path: fmt.Sprintf("/v1/leases/%d", id)}, "")
		if a.code() != "lease_not_found" {
			return errors.New(a.body)
		}
		return nil
	})
	r.m.endLease(id)
	r.counts["expired"]++
}

// dropped removes fields that must be there, whatever they are.
func dropped(got object, names []string) error {
	for _, name := range names {
		if got[name] == nil {
			return fmt.Errorf("there is no %q", name)
		}
		delete(got, name)
	}
	return nil
}
