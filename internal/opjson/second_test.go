package opjson

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
)

// describe writes a command on one line.
func describe(c *kvstore.Command) string {
	if c == nil {
		return "nothing"
	}
	if c.Op == kvstore.OpTxn {
		return describeTxn(c)
	}
	var b strings.Builder
	name := map[kvstore.Op]string{
		kvstore.OpGet: "get", kvstore.OpPut: "put", kvstore.OpDelete: "delete", kvstore.OpDeleteRange: "delete-range",
		kvstore.OpAppend: "append", kvstore.OpIncr: "incr", kvstore.OpList: "list",
	}[c.Op]
	b.WriteString(name + " " + describeKeys(c.Key, c.End, c.Op == kvstore.OpList || c.Op == kvstore.OpDeleteRange))
	note := func(given bool, format string, args ...any) {
		if given {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	note(c.Op == kvstore.OpPut || c.Op == kvstore.OpAppend, "value=%q", c.Value)
	note(c.Op == kvstore.OpIncr, "delta=%d", c.Delta)
	for _, cond := range c.Conditions {
		note(true, "if=%d", cond.Revisions[0])
	}
	note(c.ReturnPrevious, "previous")
	note(c.KeepValue, "keep-value")
	note(c.KeepLease, "keep-lease")
	note(c.TTLMillis != 0, "ttl=%d", c.TTLMillis)
	note(c.Lease != 0, "lease=%d", c.Lease)
	if r := c.Read; r != nil {
		note(r.Revision != 0, "revision=%d", r.Revision)
		note(r.Limit != 0, "limit=%d", r.Limit)
		note(r.Reverse, "reverse")
		note(r.KeysOnly, "keys-only")
		note(r.CountOnly, "count-only")
	}
	note(c.Idempotency != nil, "once=%q", key(c))
	return b.String()
}

func key(c *kvstore.Command) string {
	if c.Idempotency == nil {
		return ""
	}
	return c.Idempotency.Key
}

func describeKeys(key, end []byte, isRange bool) string {
	switch {
	case !isRange:
		return strconv.Quote(string(key))
	case end == nil:
		return strconv.Quote(string(key)) + ".."
	}
	return fmt.Sprintf("%q..%q", key, end)
}

func describeTxn(c *kvstore.Command) string {
	parts := [3][]string{}
	for i := range c.Txn.If {
		e := &c.Txn.If[i]
		target := [...]string{"", "mod", "create", "version", "value", "lease", "exists"}[e.Target]
		relation := [...]string{"", "eq", "ne", "gt", "lt"}[e.Relation]
		operand := strconv.FormatUint(e.Number, 10)
		if e.Target == kvstore.CompareValue {
			operand = strconv.Quote(string(e.Value))
		}
		parts[0] = append(parts[0], strings.Join([]string{describeKeys(e.Key, e.End, e.Range), target, relation, operand}, " "))
	}
	for i, branch := range [][]kvstore.Command{c.Txn.Then, c.Txn.Else} {
		for j := range branch {
			parts[i+1] = append(parts[i+1], describe(&branch[j]))
		}
	}
	text := "txn(if[" + strings.Join(parts[0], " | ") + "] then[" + strings.Join(parts[1], " | ") + "] else[" + strings.Join(parts[2], " | ") + "])"
	if c.Idempotency != nil {
		text += fmt.Sprintf(" once=%q", key(c))
	}
	return text
}

// What follows is a second reader of operations: slow, built on encoding/json,
// and written from the documentation.

// second reads valid JSON, and panics with refused if the first reader must refuse
// it.
type second struct {
	limits     Limits
	operations int64
	compares   int64
	writes     []secondWrite
	txns       int
}

type refused string

func (s *second) refuse(why string) { panic(refused(why)) }

func (s *second) require(ok bool, why string) {
	if !ok {
		s.refuse(why)
	}
}

// secondWrite is a write with the branches that lead to it.
type secondWrite struct {
	key, end []byte
	isRange  bool
	trail    []string // "3 then" is the then of the third transaction
}

// parse reads a line.
func (s *second) parse(text []byte) (c kvstore.Command, ok bool) {
	defer func() {
		if v := recover(); v != nil {
			_ = v.(refused)
			ok = false
		}
	}()
	doc := s.object(text, "get put delete append incr list txn idempotency_key")
	if once, given := doc["idempotency_key"]; given {
		key := s.text(once)
		s.require(len(key) >= 1 && len(key) <= 128 && strings.Trim(key, "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~") == "", "key")
		s.require(doc["get"] == nil && doc["list"] == nil, "a read with a key")
		delete(doc, "idempotency_key")
		c.Idempotency = &kvstore.Idempotency{Key: key}
	}
	s.operation(doc, &c, nil)
	for i, a := range s.writes {
		for _, b := range s.writes[:i] {
			s.require(!a.meets(b) || a.excludes(b), "a key twice")
		}
	}
	return c, true
}

func (a secondWrite) meets(b secondWrite) bool {
	end := func(w secondWrite) []byte {
		if !w.isRange {
			return append(slices.Clone(w.key), 0)
		}
		return w.end
	}
	before := func(key, end []byte) bool { return end == nil || bytes.Compare(key, end) < 0 }
	return before(a.key, end(a)) && before(b.key, end(b)) && before(a.key, end(b)) && before(b.key, end(a))
}

func (a secondWrite) excludes(b secondWrite) bool {
	for i := range min(len(a.trail), len(b.trail)) {
		if a.trail[i] != b.trail[i] {
			return strings.Fields(a.trail[i])[0] == strings.Fields(b.trail[i])[0]
		}
	}
	return false
}

// object splits an object into its fields, without those that are null.
func (s *second) object(text []byte, accepts string) map[string]json.RawMessage {
	dec := json.NewDecoder(bytes.NewReader(text))
	tok, err := dec.Token()
	s.require(err == nil && tok == json.Delim('{'), "object")
	fields, seen := map[string]json.RawMessage{}, map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		s.require(err == nil, "name")
		name := tok.(string)
		s.require(!seen[name], "duplicate")
		s.require(slices.Contains(strings.Fields(accepts), name), "unknown")
		seen[name] = true
		var value json.RawMessage
		s.require(dec.Decode(&value) == nil, "value")
		if string(value) != "null" {
			fields[name] = value
		}
	}
	return fields
}

func (s *second) list(text []byte) []json.RawMessage {
	var l []json.RawMessage
	s.require(text == nil || text[0] == '[' && json.Unmarshal(text, &l) == nil, "array")
	return l
}

func (s *second) text(raw json.RawMessage) (t string) {
	s.require(json.Unmarshal(raw, &t) == nil, "string")
	return t
}

func (s *second) boolean(raw json.RawMessage) bool {
	s.require(raw == nil || string(raw) == "true" || string(raw) == "false", "boolean")
	return string(raw) == "true"
}

func (s *second) whole(raw json.RawMessage, low, high int64) int64 {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	s.require(err == nil && n >= low && n <= high, "number")
	return n
}

func (s *second) lease(raw json.RawMessage, low int64) uint64 {
	if raw[0] != '"' {
		return uint64(s.whole(raw, low, limits.MaxSafeInteger))
	}
	t := s.text(raw)
	n, err := strconv.ParseInt(t, 10, 64)
	s.require(err == nil && n >= low && strconv.FormatInt(n, 10) == t, "lease")
	return uint64(n)
}

// bytes reads one of the two forms of a field.
func (s *second) bytes(fields map[string]json.RawMessage, name string, longest int64) (b []byte, given bool) {
	plain, based := fields[name], fields[name+"_base64"]
	switch {
	case plain == nil && based == nil:
		return nil, false
	case plain != nil:
		s.require(based == nil, "both forms")
		b = []byte(s.text(plain))
	default:
		var err error
		b, err = base64.StdEncoding.DecodeString(s.text(based))
		s.require(err == nil, "base64")
	}
	s.require(int64(len(b)) <= longest, "length")
	return b, true
}

const secondKeys = " key key_base64 prefix prefix_base64 start start_base64 end end_base64 "

// keys reads which keys are meant.
func (s *second) keys(f map[string]json.RawMessage) (key, end []byte, isRange bool) {
	key, one := s.bytes(f, "key", 4096)
	prefix, all := s.bytes(f, "prefix", 4096)
	start, from := s.bytes(f, "start", 4096)
	end, to := s.bytes(f, "end", 4096)
	switch {
	case one:
		s.require(!all && !from && !to && len(key) > 0, "key")
		return key, nil, false
	case all:
		s.require(!from && !to, "prefix")
		return prefix, kvstore.Prefix(prefix).End(), true
	}
	s.require(from || to, "nothing")
	if !to {
		return start, nil, true
	}
	s.require(len(end) > 0 && bytes.Compare(start, end) <= 0, "end")
	return start, end, true
}

func (s *second) operation(doc map[string]json.RawMessage, c *kvstore.Command, trail []string) {
	s.require(len(doc) == 1, "one operation")
	for name, body := range doc {
		if name == "txn" {
			s.transaction(body, c, trail)
			return
		}
		accepts := map[string]string{
			"get": "key key_base64 revision", "append": "key key_base64 value value_base64 if_revision return ttl", "incr": "key key_base64 delta if_revision return ttl",
			"put":    "key key_base64 value value_base64 if_revision return ttl lease keep_value keep_lease",
			"delete": secondKeys + "if_revision return", "list": strings.TrimPrefix(secondKeys, " key key_base64") + "revision limit reverse keys_only count_only",
		}[name]
		s.single(name, s.object(body, accepts), c)
		if len(trail) > 0 && name != "get" && name != "list" {
			s.writes = append(s.writes, secondWrite{c.Key, c.End, c.Op == kvstore.OpDeleteRange, slices.Clone(trail)})
		}
	}
}

func (s *second) single(name string, f map[string]json.RawMessage, c *kvstore.Command) {
	var isRange bool
	c.Key, c.End, isRange = s.keys(f)
	c.Op = map[string]kvstore.Op{
		"get": kvstore.OpGet, "put": kvstore.OpPut, "delete": kvstore.OpDelete, "append": kvstore.OpAppend, "incr": kvstore.OpIncr, "list": kvstore.OpList,
	}[name]
	if name == "delete" && isRange {
		c.Op = kvstore.OpDeleteRange
		s.require(f["if_revision"] == nil && (len(c.Key) > 0 || f["end"] != nil || f["end_base64"] != nil), "delete")
	}
	var given bool
	c.Value, given = s.bytes(f, "value", s.limits.MaxValueBytes)
	c.KeepValue, c.KeepLease = s.boolean(f["keep_value"]), s.boolean(f["keep_lease"])
	s.require(given == ((name == "put" || name == "append") && !c.KeepValue), "value")
	s.require((f["delta"] != nil) == (name == "incr"), "delta")
	if name == "incr" {
		c.Delta = s.whole(f["delta"], math.MinInt64, math.MaxInt64)
	}
	if v := f["if_revision"]; v != nil {
		c.Conditions = []kvstore.Condition{{Revisions: []uint64{uint64(s.whole(v, 0, limits.MaxSafeInteger))}}}
	}
	if v := f["return"]; v != nil {
		c.ReturnPrevious = s.text(v) == "previous"
		s.require(c.ReturnPrevious, "return")
	}
	s.require(f["ttl"] == nil || f["lease"] == nil, "both")
	s.require(f["ttl"] == nil && f["lease"] == nil || !c.KeepLease, "keeps")
	if v := f["lease"]; v != nil {
		c.Lease = s.lease(v, 1)
	}
	if v := f["ttl"]; v != nil {
		c.TTLMillis = s.ttl(v)
	}
	s.read(name, f, c)
}

func (s *second) ttl(raw json.RawMessage) int64 {
	text := string(raw)
	if raw[0] == '"' {
		text = s.text(raw)
	}
	if text != "" && strings.Trim(text, "0123456789.") == "" {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	s.require(err == nil && d > 0 && d.Milliseconds() <= kvstore.MaxTTLMillis, "ttl")
	millis := d / time.Millisecond
	if d%time.Millisecond > 0 {
		millis++
	}
	return int64(millis)
}

func (s *second) read(name string, f map[string]json.RawMessage, c *kvstore.Command) {
	r := &kvstore.Read{Reverse: s.boolean(f["reverse"]), KeysOnly: s.boolean(f["keys_only"]), CountOnly: s.boolean(f["count_only"])}
	if v := f["revision"]; v != nil {
		r.Revision = uint64(s.whole(v, 1, limits.MaxSafeInteger))
	}
	if v := f["limit"]; v != nil {
		r.Limit = uint64(s.whole(v, 1, 10_000))
	} else if name == "list" && !r.CountOnly {
		r.Limit = 1000
	}
	c.Read = r
}

func (s *second) transaction(text json.RawMessage, c *kvstore.Command, trail []string) {
	s.require(len(trail) < 8, "depth")
	s.txns++
	id := strconv.Itoa(s.txns)
	parts := s.object(text, "if then else")
	c.Op, c.Txn = kvstore.OpTxn, new(kvstore.Txn)
	for _, raw := range s.list(parts["if"]) {
		s.compares++
		c.Txn.If = append(c.Txn.If, s.compare(raw))
	}
	for _, branch := range []string{"then", "else"} {
		for _, raw := range s.list(parts[branch]) {
			s.operations++
			var inner kvstore.Command
			s.operation(s.object(raw, "get put delete append incr list txn"), &inner, append(slices.Clone(trail), id+" "+branch))
			if branch == "then" {
				c.Txn.Then = append(c.Txn.Then, inner)
			} else {
				c.Txn.Else = append(c.Txn.Else, inner)
			}
		}
	}
	s.require(s.operations <= s.limits.MaxTxnOps && s.compares <= s.limits.MaxTxnOps, "operations")
}

func (s *second) compare(text json.RawMessage) (c kvstore.Compare) {
	targets := []string{"", "revision", "create_revision", "version", "value", "lease", "exists"}
	f := s.object(text, secondKeys+strings.Join(targets, " ")+" value_base64")
	c.Key, c.End, c.Range = s.keys(f)
	for name, raw := range f {
		plain := strings.TrimSuffix(name, "_base64")
		target := slices.Index(targets, plain)
		if target < 0 {
			continue
		}
		s.require(c.Target == 0, "two targets")
		c.Target, c.Relation = kvstore.CompareTarget(target), kvstore.Equal
		if raw[0] == '{' {
			relations := s.object(raw, "eq ne gt lt")
			s.require(len(relations) == 1, "one relation")
			for r, operand := range relations {
				c.Relation, raw = kvstore.Relation(slices.Index([]string{"", "eq", "ne", "gt", "lt"}, r)), operand
			}
		}
		s.operand(&c, name, raw)
	}
	s.require(c.Target != 0, "no target")
	return c
}

func (s *second) operand(c *kvstore.Compare, name string, raw json.RawMessage) {
	switch name {
	case "exists":
		s.require(c.Relation <= kvstore.NotEqual, "relation of exists")
		if s.boolean(raw) {
			c.Number = 1
		}
	case "lease":
		c.Number = s.lease(raw, 0)
	case "value", "value_base64":
		c.Value, _ = s.bytes(map[string]json.RawMessage{name: raw}, "value", limits.MaxValueBytes)
	default:
		c.Number = uint64(s.whole(raw, 0, limits.MaxSafeInteger))
	}
}
