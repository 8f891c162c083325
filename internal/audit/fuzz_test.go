package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// FuzzLine records changes of arbitrary keys by clients that call themselves anything. Each
// is one line of JSON, without control characters and without the value; the keys in it are
// those of the change; and a log that hashes keys, or leaves them out, has none.
func FuzzLine(f *testing.F) {
	f.Add([]byte("a"), []byte("b"), "ann", "op")
	f.Add([]byte("a\n{\"}"), []byte{0xff}, "x\x1b[2J\u202e", "a\r\nb")
	f.Add([]byte("\u2028"), []byte{}, strings.Repeat("\u00e9", maxClaimedBytes), strings.Repeat("\U0001F600", maxTargetBytes))
	f.Fuzz(func(t *testing.T, key, end []byte, claimed, target string) {
		const marker = "s3cr3t-"
		start := append([]byte(marker), key...)
		cmd := &kvstore.Command{Op: kvstore.OpTxn, Txn: &kvstore.Txn{
			Then: []kvstore.Command{
				{Op: kvstore.OpPut, Key: start, Value: []byte("t0p-s3cr3t")}, {Op: kvstore.OpDeleteRange, Key: start, End: end}, {Op: kvstore.OpDeleteRange, Key: start},
			},
			Else: []kvstore.Command{{Op: kvstore.OpLock, Key: start}},
		}}
		for _, mode := range []string{KeysPlain, KeysHashed, KeysOff} {
			l := newLog(Options{Keys: mode, Salt: func() string { return "salt" }})
			r := l.Begin(Subject{Face: FaceHTTP, Operation: "PUT", Caller: &access.Caller{Claimed: claimed, Address: "192.0.2.1:5"}})
			ln, ok := Replicator{new(cluster), l}.describe(NewContext(context.Background(), r), cmd)
			if !ok {
				t.Fatal("nothing is recorded")
			}
			ln.Target = clip(target)
			text := l.encode(&ln)
			checkLine(t, text, claimed)
			if mode == KeysPlain {
				checkNames(t, ln.Keys, start, end)
			} else if bytes.Contains(text, []byte(marker)) && !strings.Contains(claimed+target, marker) {
				t.Fatalf("with keys %s: %s", mode, text)
			}
			if bytes.Contains(text, []byte("t0p-s3cr3t")) && !strings.Contains(string(key)+string(end)+claimed+target, "t0p-s3cr3t") {
				t.Fatalf("the line has the value: %s", text)
			}
		}
	})
}

// checkLine checks the form of a line, and of the name in it that a stranger chose.
func checkLine(t *testing.T, text []byte, claimed string) {
	var ln line
	if err := json.Unmarshal(text, &ln); err != nil || bytes.Count(text, []byte("\n")) != 1 {
		t.Fatalf("%v in %q", err, text)
	}
	if bytes.ContainsFunc(bytes.TrimSuffix(text, []byte("\n")), func(r rune) bool { return r < ' ' }) || len(ln.Claimed) > 4*maxClaimedBytes ||
		strings.ContainsFunc(ln.Claimed, func(r rune) bool { return !unicode.IsPrint(r) }) || len(claimed) > 0 && ln.Claimed == "" {
		t.Fatalf("%q is shown as %q in %q", claimed, ln.Claimed, text)
	}
	if len(ln.Target) > 3*maxTargetBytes {
		t.Fatalf("a target of %d bytes", len(ln.Target))
	}
}

// checkNames reads the recorded names back.
func checkNames(t *testing.T, names []name, start, end []byte) {
	want := []span{{rights.Keys, rights.Single(start)}, {rights.Keys, rights.Range{Start: start, End: end}}, {rights.Keys, rights.Range{Start: start}}, {rights.Locks, rights.Single(start)}}
	for i, n := range names {
		bytesOf := func(s *string) []byte {
			switch {
			case s == nil:
				return nil
			case n.As == "base64":
				b, err := base64.StdEncoding.DecodeString(*s)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			return []byte(*s)
		}
		got := span{rights.Keys, rights.Range{Start: bytesOf(n.Start), End: bytesOf(n.End)}}
		switch {
		case n.Lock != nil:
			got = span{rights.Locks, rights.Single(bytesOf(n.Lock))}
		case n.Key != nil:
			got.rng = rights.Single(bytesOf(n.Key))
		}
		w := want[i]
		if got.space != w.space || got.rng.One != w.rng.One || !bytes.Equal(got.rng.Start, w.rng.Start) || !bytes.Equal(got.rng.End, w.rng.End) || (n.End == nil) != (w.rng.End == nil) {
			t.Fatalf("name %d is %+v, want %+v", i, got, w)
		}
	}
}
