package transfer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kvd-io/kvd/client"
)

// read reads an export.
func read(text string) (pairs []Pair, head Head, sum string, err error) {
	in := newExportReader(strings.NewReader(text))
	for {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return pairs, in.head, in.digest.String(), nil
		}
		if err != nil {
			return nil, Head{}, "", err
		}
		if line.Type == "" {
			pairs = append(pairs, Pair{line.KeyText(), []byte(line.ValueText()), line.leased()})
		}
	}
}

// written writes an export.
func written(t testing.TB, pairs []Pair) string {
	var out bytes.Buffer
	x := NewExporter(&out)
	err := x.Begin(7, "")
	for _, p := range pairs {
		kv := &client.KV{Key: p.Key, Value: p.Value, ModRevision: 3, CreateRevision: 2, Version: 2}
		if p.Leased {
			kv.Lease = maxExact + 1
		}
		err = errors.Join(err, x.Add(kv))
	}
	if err = errors.Join(err, x.Finish(), x.Flush()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func same(a, b []Pair) bool {
	return slices.EqualFunc(a, b, func(p, q Pair) bool {
		return p.Key == q.Key && bytes.Equal(p.Value, q.Value) && p.Leased == q.Leased
	})
}

// FuzzExport: any pairs come back from an export, an export of which a byte is missing or
// another one is refused or has the same pairs, and whatever is read at all is read the
// same way once it is written again.
func FuzzExport(f *testing.F) {
	good := written(f, []Pair{{"a", []byte("1"), false}, {"b\xff", []byte{0xff, 0}, true}})
	f.Add(good, "k", []byte("v"), uint16(0))
	f.Add(`{"key":"a","value":"1"}`+"\n"+`{"type":"end","count":1}`, "\u2028<", []byte{}, uint16(30))
	f.Add("{\"key\":\"\xff\",\"value\":\"1\"}\n{\"type\":\"end\",\"count\":1}", "\xed\xa0\x80", []byte("\xff"), uint16(300))
	f.Add(`{"type":"kvd-export","format":2}`, "", []byte{1}, uint16(99))
	f.Fuzz(func(t *testing.T, text, key string, value []byte, at uint16) {
		if pairs, _, sum, err := read(text); err == nil {
			again, _, sum2, err := read(written(t, pairs))
			if err != nil || sum2 != sum || !same(again, pairs) {
				t.Fatalf("%q is read as %v, and that written as %v, %v", text, pairs, again, err)
			}
			if !utf8.ValidString(text) {
				t.Fatalf("%q is taken, with characters that are none", text)
			}
		}
		if key == "" {
			return
		}
		want := []Pair{{key, value, at%2 == 0}, {key + "\x00", []byte(key), false}}
		export := written(t, want)
		if got, head, _, err := read(export); err != nil || !same(got, want) || head.Revision != 7 {
			t.Fatalf("%q: %v, %v", export, got, err)
		}
		i := int(at) % len(export)
		for _, bad := range []string{export[:i] + export[i+1:], export[:i] + "7" + export[i+1:], export[:i]} {
			if got, _, _, err := read(bad); err == nil && !slices.EqualFunc(got, want, func(p, q Pair) bool { return p.Key == q.Key && bytes.Equal(p.Value, q.Value) }) {
				t.Fatalf("%q, with a fault at %d, is read as %v", export, i, got)
			}
		}
	})
}

// FuzzConsul: what is read of the output of consul kv export is what encoding/json reads of
// the whole.
func FuzzConsul(f *testing.F) {
	f.Add(`[{"key":"a","flags":0,"value":"MQ=="},{"key":"b","value":""}]`)
	f.Add(`[{"key":"a"}] and more`)
	f.Add(`[{"key":"","value":"MQ=="}]`)
	f.Add("[{\"key\":\"\xff\"}")
	f.Fuzz(func(t *testing.T, text string) {
		var pairs []Pair
		if err := readConsul(json.NewDecoder(strings.NewReader(text)), func(p Pair) bool { pairs = append(pairs, p); return true }); err != nil {
			return
		}
		var want []struct {
			Key   string
			Value []byte
		}
		if err := json.Unmarshal([]byte(text), &want); err != nil || len(want) != len(pairs) || !utf8.ValidString(text) {
			t.Fatalf("%q is read as %v; %v, %v", text, pairs, want, err)
		}
		for i, w := range want {
			if w.Key == "" || w.Key != pairs[i].Key || !bytes.Equal(w.Value, pairs[i].Value) {
				t.Fatalf("%q is read as %v", text, pairs)
			}
		}
	})
}

// FuzzLeaseID: an id comes back from either form, and no other text is one.
func FuzzLeaseID(f *testing.F) {
	for _, text := range []string{`7`, `"9007199254740993"`, `"-1"`, `07`, `""`, `"7`, `null`, `1e3`} {
		f.Add(text, int64(1)<<53)
	}
	f.Fuzz(func(t *testing.T, text string, n int64) {
		b, err := json.Marshal(LeaseID(n))
		var got LeaseID
		if err != nil || json.Unmarshal(b, &got) != nil || int64(got) != n {
			t.Fatalf("%d is written as %s, and read as %d", n, b, got)
		}
		if json.Unmarshal([]byte(text), &got) != nil {
			return
		}
		var plain string
		if json.Unmarshal([]byte(text), &plain) != nil {
			plain = strings.Trim(text, " \t\r\n")
		}
		if want, ok := new(big.Int).SetString(plain, 10); !ok || !want.IsInt64() || want.Int64() != int64(got) {
			t.Fatalf("%q is read as %d", text, got)
		}
	})
}
