package guard

import (
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/rights"
)

func single(access rights.Access, key string) rights.Need {
	return rights.Need{Access: access, Range: rights.Single([]byte(key))}
}

func between(access rights.Access, start, end string) rights.Need {
	return rights.Need{Access: access, Range: rights.Range{Start: []byte(start), End: []byte(end)}}
}

// TestNeeds has what every operation needs.
func TestNeeds(t *testing.T) {
	key, end := []byte("a"), []byte("c")
	condition := []command.Condition{{Kind: command.IfMatch, Any: true}}
	lock := rights.Need{Access: rights.Write, Space: rights.Locks, Range: rights.Single(key)}
	for op, cases := range map[command.Op][]struct {
		c    command.Command
		want []rights.Need
	}{
		command.OpPut: {
			{command.Command{}, []rights.Need{single(rights.Write, "a")}},
			{command.Command{ReturnPrevious: true}, []rights.Need{single(rights.ReadWrite, "a")}},
			{command.Command{Conditions: condition}, []rights.Need{single(rights.ReadWrite, "a")}},
			{command.Command{UnlessEqual: true}, []rights.Need{single(rights.ReadWrite, "a")}},
		},
		command.OpDelete:      {{command.Command{}, []rights.Need{single(rights.Write, "a")}}},
		command.OpAppend:      {{command.Command{}, []rights.Need{single(rights.Write, "a")}}},
		command.OpIncr:        {{command.Command{}, []rights.Need{single(rights.ReadWrite, "a")}}},
		command.OpGet:         {{command.Command{}, []rights.Need{single(rights.Read, "a")}}},
		command.OpList:        {{command.Command{End: end}, []rights.Need{between(rights.Read, "a", "c")}}},
		command.OpDeleteRange: {{command.Command{End: end}, []rights.Need{between(rights.Write, "a", "c")}}, {command.Command{End: end, ReturnPrevious: true}, []rights.Need{between(rights.ReadWrite, "a", "c")}}},
		command.OpTxn: {{command.Command{Txn: &command.Txn{
			If:   []command.Compare{{Key: []byte("x")}, {Key: []byte("y"), Range: true, End: []byte("z")}},
			Then: []command.Command{{Op: command.OpPut, Key: []byte("t")}},
			Else: []command.Command{{Op: command.OpTxn, Txn: &command.Txn{Else: []command.Command{{Op: command.OpDelete, Key: []byte("e")}}}}},
		}}, []rights.Need{single(rights.Read, "x"), between(rights.Read, "y", "z"), single(rights.Write, "t"), single(rights.Write, "e")}}},
		command.OpLock:        {{command.Command{}, []rights.Need{lock}}},
		command.OpUnlock:      {{command.Command{}, []rights.Need{lock}}},
		command.OpLeaseGrant:  {{command.Command{}, []rights.Need{{}}}},
		command.OpLeaseRevoke: {{command.Command{Lease: 7}, nil}},
		command.OpLeaseExpire: {{command.Command{}, nil}},
		command.OpTick:        {{command.Command{}, nil}},
		command.OpCompact:     {{command.Command{}, []rights.Need{{Capability: rights.Operate}}}},
		command.OpSettings:    {{command.Command{}, []rights.Need{{Capability: rights.Settings}}}},
		command.OpForget:      {{command.Command{}, nil}},
		command.OpRights:      {{command.Command{}, []rights.Need{{Capability: rights.Auth}}}},
	} {
		for _, c := range cases {
			c.c.Op = op
			if c.c.Key == nil {
				c.c.Key = key
			}
			if got := AppendNeeds(nil, &c.c); !reflect.DeepEqual(got, c.want) {
				t.Errorf("operation %d: %v, want %v", op, got, c.want)
			}
		}
	}
}

// TestEveryOperationIsJudged: an operation that AppendNeeds does not know would need
// nothing. The decoder knows all that there are.
func TestEveryOperationIsJudged(t *testing.T) {
	harmless := []command.Op{command.OpTick, command.OpLeaseExpire, command.OpForget, command.OpLeaseRevoke}
	for op := range command.Op(255) {
		c := command.Command{
			Op: op, Key: []byte("k"), Settings: new(command.SettingsChange), Rights: new(rights.Change),
			Txn: &command.Txn{Then: []command.Command{{Op: command.OpPut, Key: []byte("k")}}},
		}
		if _, err := command.Decode(command.Encode(nil, &c)); err != nil {
			continue // there is no such operation
		}
		if len(AppendNeeds(nil, &c)) == 0 && !slices.Contains(harmless, op) {
			t.Errorf("operation %d needs nothing", op)
		}
	}
}

// TestRandomCommands compares the verdict with a plain model: a set of keys that a
// user may read, and one that it may write.
func TestRandomCommands(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	for range 3000 {
		m := newModel(t, r)
		for range 5 {
			c := m.command(r, 2)
			c.Origin.Principal = "ann"
			var result command.Result
			refused, err := m.guard.Refuse(&c, &result)
			if err != nil {
				t.Fatal(err)
			}
			if want := !m.may(&c); refused != want {
				t.Fatalf("%+v with %+v: refused is %v (%s), want %v", c, m.role, refused, result.Detail, want)
			}
			if refused && (result.Outcome != command.PermissionDenied || result.Detail == "") {
				t.Fatalf("refused with %+v", result)
			}
		}
	}
}

// letters are the keys of the model.
const letters = "abcdefgh"

// model is a user with one role, and the keys of some leases.
type model struct {
	guard  Guard
	role   rights.Role
	leases map[uint64]string
}

func newModel(t *testing.T, r *rand.Rand) *model {
	t.Helper()
	m := &model{role: rights.Role{Name: "role"}, leases: map[uint64]string{1: "a", 2: "abc", 3: "h"}}
	for range r.IntN(4) {
		from := r.IntN(len(letters))
		p := rights.Permission{Access: rights.Access(1 + r.IntN(3)), Key: []byte{letters[from]}}
		if to := from + r.IntN(len(letters)-from); to > from {
			p.RangeEnd = []byte{letters[to]}
		}
		if !slices.ContainsFunc(m.role.Permissions, p.Same) {
			m.role.Permissions = append(m.role.Permissions, p)
		}
	}
	if err := m.guard.Load(engine.NewMemory()); err != nil {
		t.Fatal(err)
	}
	m.guard.Rows = func(table byte, prefix []byte, fn func(key, value []byte) bool) error {
		if table != layout.TableLeaseKey {
			return nil
		}
		for _, k := range []byte(m.leases[binary.BigEndian.Uint64(prefix)]) {
			if !fn(append(slices.Clone(prefix), k), nil) {
				break
			}
		}
		return nil
	}
	tables := m.guard.Tables()
	for _, c := range []rights.Change{
		{PutUser: &rights.User{Name: rights.Root, Roles: []string{rights.Root}}},
		{PutRole: &m.role},
		{PutUser: &rights.User{Name: "ann", Roles: []string{"role"}}},
		{Enable: true},
	} {
		after, _, err := tables.Apply(&c)
		if err != nil {
			t.Fatal(err)
		}
		tables = after
	}
	m.guard.replace(tables)
	return m
}

func (m *model) command(r *rand.Rand, depth int) command.Command {
	from := r.IntN(len(letters))
	c := command.Command{Key: []byte{letters[from]}, ReturnPrevious: r.IntN(4) == 0}
	ops := []command.Op{command.OpPut, command.OpDelete, command.OpAppend, command.OpIncr, command.OpGet, command.OpList, command.OpDeleteRange, command.OpLeaseRevoke}
	if depth > 0 {
		ops = append(ops, command.OpTxn, command.OpTxn)
	}
	switch c.Op = ops[r.IntN(len(ops))]; c.Op {
	case command.OpPut:
		c.Lease = uint64(r.IntN(4))
	case command.OpLeaseRevoke:
		c.Lease = uint64(1 + r.IntN(3))
	case command.OpList, command.OpDeleteRange:
		if r.IntN(4) > 0 {
			c.End = []byte{letters[from+r.IntN(len(letters)-from)]}
		}
	case command.OpTxn:
		c.Txn = &command.Txn{If: []command.Compare{{Key: []byte{letters[r.IntN(len(letters))]}}}}
		c.Txn.Then = append(c.Txn.Then, m.command(r, depth-1))
		c.Txn.Else = append(c.Txn.Else, m.command(r, depth-1))
	}
	return c
}

// has says whether a key is granted; "~" stands for all keys after the letters.
func (m *model) has(access rights.Access, key byte) bool {
	return slices.ContainsFunc(m.role.Permissions, func(p rights.Permission) bool {
		end := p.Key[0] + 1
		if len(p.RangeEnd) > 0 {
			end = p.RangeEnd[0]
		}
		return p.Access&access == access && p.Key[0] <= key && key < end
	})
}

// hasRange asks for each letter. Within a letter there are more keys: the range of a
// single key covers only the letter itself.
func (m *model) hasRange(access rights.Access, c *command.Command) bool {
	if c.End == nil {
		return false // no permission of the model is open
	}
	for k := c.Key[0]; k < c.End[0]; k++ {
		if !slices.ContainsFunc(m.role.Permissions, func(p rights.Permission) bool {
			return p.Access&access == access && len(p.RangeEnd) > 0 && p.Key[0] <= k && k < p.RangeEnd[0]
		}) {
			return false
		}
	}
	return true
}

func (m *model) may(c *command.Command) bool {
	if c.Op == command.OpTxn {
		return m.has(rights.Read, c.Txn.If[0].Key[0]) && m.may(&c.Txn.Then[0]) && m.may(&c.Txn.Else[0])
	}
	for _, k := range []byte(m.leases[c.Lease]) {
		if !m.has(rights.Write, k) {
			return false
		}
	}
	reads := c.ReturnPrevious && c.Op != command.OpGet && c.Op != command.OpList
	switch c.Op {
	case command.OpLeaseRevoke:
		return true
	case command.OpGet:
		return m.has(rights.Read, c.Key[0])
	case command.OpList:
		return m.hasRange(rights.Read, c)
	case command.OpDeleteRange:
		return m.hasRange(rights.Write, c) && (!reads || m.hasRange(rights.Read, c))
	}
	return m.has(rights.Write, c.Key[0]) && (!reads && c.Op != command.OpIncr || m.has(rights.Read, c.Key[0]))
}
