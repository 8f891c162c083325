package httpapi

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// modelLetters are the keys, the locks, and the bounds of all ranges of the model.
const modelLetters = "abcdef"

// rule is a model of who may do what that knows single names only.
type rule []rights.Permission

// has says by the definition whether a permission covers a name.
func (r rule) has(a rights.Access, space rights.Space, name string) bool {
	for _, p := range r {
		end := string(p.Key) + "\x00"
		switch {
		case string(p.RangeEnd) == "\x00":
			end = "\xff\xff\xff"
		case len(p.RangeEnd) > 0:
			end = string(p.RangeEnd)
		}
		if p.Space == space && p.Access&a == a && string(p.Key) <= name && name < end {
			return true
		}
	}
	return false
}

// both asks for each kind of access on its own: one permission may read, another write.
func (r rule) both(a rights.Access, space rights.Space, name string) bool {
	return (a&rights.Read == 0 || r.has(rights.Read, space, name)) && (a&rights.Write == 0 || r.has(rights.Write, space, name))
}

// covers looks at each letter, and behind it. An empty end is open.
func (r rule) covers(a rights.Access, from, end string) bool {
	for _, l := range modelLetters + "g" {
		for _, behind := range []string{"", "\x00", "\x7f"} {
			if name := string(l) + behind; from <= name && (end == "" || name < end) && !r.both(a, rights.Keys, name) {
				return false
			}
		}
	}
	return end != "" || r.both(a, rights.Keys, "\xff")
}

// modelRequest is a request, and whether the model allows it.
type modelRequest struct {
	method, target, body string
	may                  bool
	inLine               bool // the refusal is in a line of the answer
}

// modelWorld makes requests at random.
type modelWorld struct {
	*rand.Rand
	f *fixture
	r rule
}

func (w *modelWorld) letter() string { return string(modelLetters[w.IntN(len(modelLetters))]) }

// span returns the bounds of a range that has names.
func (w *modelWorld) span() (from, end string) {
	i := w.IntN(len(modelLetters))
	if w.IntN(5) == 0 {
		return string(modelLetters[i]), ""
	}
	return string(modelLetters[i]), string("bcdefg"[i+w.IntN(len(modelLetters)-i)])
}

func (w *modelWorld) role() rights.Role {
	role := rights.Role{Name: "role"}
	w.r = nil
	for range w.IntN(5) {
		p := rights.Permission{Access: rights.Access(1 + w.IntN(3)), Key: []byte(w.letter())}
		if from, end := w.span(); w.IntN(3) > 0 {
			p.Key, p.RangeEnd = []byte(from), []byte(end)
			if end == "" {
				p.RangeEnd = []byte{0}
			}
		}
		if w.IntN(3) == 0 {
			p.Space = rights.Locks
		}
		same := false
		for _, have := range w.r {
			same = same || have.Same(p)
		}
		if !same {
			w.r = append(w.r, p)
		}
	}
	role.Permissions = w.r
	return role
}

// bound says whether everything that is bound to a lease is allowed.
func (w *modelWorld) bound(a rights.Access, lease uint64) bool {
	all := true
	if err := kvstore.EachBound(w.f.node.Store, lease, func(space rights.Space, name []byte) bool {
		all = all && w.r.both(a, space, string(name))
		return true
	}); err != nil {
		w.f.t.Fatal(err)
	}
	return all
}

func (w *modelWorld) request() modelRequest {
	key := w.letter()
	lease := uint64(7 + w.IntN(3))
	from, end := w.span()
	span := "start=" + from
	if end != "" {
		span += "&end=" + end
	}
	need := rights.Write
	flags := ""
	if w.IntN(3) == 0 {
		need, flags = rights.ReadWrite, []string{"&return=previous", "&if_revision=3"}[w.IntN(2)]
	}
	mine := w.r.both(need, rights.Keys, key)
	reads := w.r.has(rights.Read, rights.Keys, key)
	lock := w.r.has(rights.Write, rights.Locks, key)
	put := modelRequest{"PUT", "/v1/kv/" + key + "?x" + flags, "1", mine, false}
	put.target = strings.Replace(put.target, "?x&", "?", 1)
	put.target = strings.TrimSuffix(put.target, "?x")
	switch w.IntN(16) {
	case 0:
		return modelRequest{"GET", "/v1/kv/" + key, "", reads, false}
	case 1:
		return put
	case 2:
		put.method, put.body = "DELETE", ""
		return put
	case 3:
		return modelRequest{"POST", "/v1/kv/" + key + "?append" + flags, "1", mine, false}
	case 4:
		return modelRequest{"POST", "/v1/kv/" + key + "?incr=1", "", w.r.both(rights.ReadWrite, rights.Keys, key), false}
	case 5:
		variant := []string{"", "&count_only", "&keys_only", "&reverse", "&delimiter=x", "&limit=1"}[w.IntN(6)]
		return modelRequest{"GET", "/v1/kv?" + span + variant, "", w.r.covers(rights.Read, from, end), false}
	case 6:
		return modelRequest{"DELETE", "/v1/kv?" + span, "", w.r.covers(rights.Write, from, end), false}
	case 7, 8:
		text, may := w.txn(2)
		return modelRequest{"POST", "/v1/txn", text, may, false}
	case 9:
		op, may := w.nested(1)
		return modelRequest{"POST", "/v1/batch", op, may, true}
	case 10:
		if w.IntN(2) == 0 {
			return modelRequest{"GET", "/v1/watch?timeout=1ms&key=" + key, "", reads, false}
		}
		return modelRequest{"GET", "/v1/watch?timeout=1ms&" + span, "", w.r.covers(rights.Read, from, end), false}
	case 11:
		return modelRequest{"PUT", fmt.Sprintf("/v1/kv/%s?lease=%d%s", key, lease, flags), "1", mine && w.bound(rights.Write, lease), false}
	case 12:
		return modelRequest{"DELETE", fmt.Sprint("/v1/leases/", lease), "", w.bound(rights.Write, lease), false}
	case 13:
		if w.IntN(2) == 0 {
			return modelRequest{"POST", fmt.Sprintf("/v1/leases/%d/keepalive", lease), "", w.bound(rights.Write, lease), false}
		}
		return modelRequest{"GET", fmt.Sprintf("/v1/leases/%d?keys", lease), "", w.bound(rights.Read, lease), false}
	case 14:
		if w.IntN(2) == 0 {
			return modelRequest{"GET", "/v1/locks/" + key, "", w.r.has(rights.Read, rights.Locks, key), false}
		}
		return modelRequest{"POST", fmt.Sprintf("/v1/locks/%s?lease=%d", key, lease), "", lock && w.bound(rights.Write, lease), false}
	}
	return modelRequest{"DELETE", fmt.Sprintf("/v1/locks/%s?lease=%d", key, lease), "", lock && w.bound(rights.Write, lease), false}
}

// txn returns the text of a transaction.
func (w *modelWorld) txn(depth int) (text string, may bool) {
	key := w.letter()
	may = w.r.has(rights.Read, rights.Keys, key)
	var branches []string
	for _, name := range []string{"then", "else"} {
		op, allowed := w.nested(depth)
		may = may && allowed
		branches = append(branches, fmt.Sprintf("%q:[%s]", name, op))
	}
	return fmt.Sprintf(`{"if":[{"key":%q,"version":{"gt":0}}],%s}`, key, strings.Join(branches, ",")), may
}

// nested returns an operation in a transaction, or in a line: {"put":{...}}.
func (w *modelWorld) nested(depth int) (text string, may bool) {
	if depth > 0 && w.IntN(3) == 0 {
		text, may = w.txn(depth - 1)
		return `{"txn":` + text + `}`, may
	}
	kind, fields, may := w.plain()
	return fmt.Sprintf(`{%q:{%s}}`, kind, fields), may
}

func (w *modelWorld) plain() (kind, fields string, may bool) {
	key := w.letter()
	from, end := w.span()
	span := fmt.Sprintf(`"start":%q`, from)
	if end != "" {
		span += fmt.Sprintf(`,"end":%q`, end)
	}
	name := fmt.Sprintf(`"key":%q`, key)
	switch w.IntN(6) {
	case 0:
		return "get", name, w.r.has(rights.Read, rights.Keys, key)
	case 1:
		return "delete", name, w.r.has(rights.Write, rights.Keys, key)
	case 2:
		return "list", span, w.r.covers(rights.Read, from, end)
	case 3:
		return "incr", name + `,"delta":1`, w.r.both(rights.ReadWrite, rights.Keys, key)
	case 4:
		return "put", name + `,"value":"1","return":"previous"`, w.r.both(rights.ReadWrite, rights.Keys, key)
	}
	return "put", name + `,"value":"1"`, w.r.has(rights.Write, rights.Keys, key)
}

// TestRightsAgreeWithTheModel: for thousands of roles and requests at random, what is
// refused is what the model refuses, and nothing else.
func TestRightsAgreeWithTheModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	f := newFixture(t, withGate)
	f.enableRights()
	w := &modelWorld{Rand: rand.New(rand.NewPCG(seed, 1)), f: f}
	as := bearer(f.secret("user", rights.Role{}, time.Time{}))
	f.change(rights.Change{PutRole: &rights.Role{Name: "role"}})
	f.change(rights.Change{PutUser: &rights.User{Name: "user", Roles: []string{"role"}}})
	by := kvstore.Origin{Principal: rights.Root}
	allowed, refused := 0, 0
	for range 400 {
		role := w.role()
		f.change(rights.Change{PutRole: &role})
		for range 10 {
			lease, key := uint64(7+w.IntN(2)), []byte(w.letter()) // nothing is bound to 9
			f.applyAny(&kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: lease, TTLMillis: 60_000, Origin: by})
			f.applyAny(&kvstore.Command{Op: kvstore.OpPut, Key: key, Value: []byte("1"), Lease: lease, Origin: by})
			if w.IntN(4) == 0 {
				f.applyAny(&kvstore.Command{Op: kvstore.OpLock, Key: key, Lease: lease, Origin: by})
			}
			r := w.request()
			before := f.node.Revision()
			a := f.ask(r.method, r.target, r.body, as)
			denied := a.Code == http.StatusForbidden || r.inLine && strings.Contains(a.Body.String(), `"permission_denied"`)
			if denied == r.may || a.Code >= 500 || a.Code == http.StatusUnauthorized || strings.Contains(a.Body.String(), "bad_request") {
				t.Fatalf("%s %s %s: %d %s; the model says %v; the role is %s", r.method, r.target, r.body, a.Code, a.Body, r.may, describe(w.r))
			}
			if denied && f.node.Revision() != before {
				t.Fatalf("%s %s was refused, and changed something", r.method, r.target)
			}
			if denied {
				refused++
			} else {
				allowed++
			}
		}
	}
	if allowed < 400 || refused < 400 {
		t.Errorf("%d requests were allowed, %d refused", allowed, refused)
	}
}

func describe(r rule) string {
	var all []string
	for _, p := range r {
		all = append(all, fmt.Sprintf("%s %s %s", p.Access, p.Space, p.Range()))
	}
	return strings.Join(all, "; ")
}
