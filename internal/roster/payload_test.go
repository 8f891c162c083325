package roster

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/limits"
)

var updateGolden = flag.Bool("update", false, "rewrite the golden files")

// golden compares bytes with a file in testdata, in hexadecimal: formats on
// disk and on the wire must not change by accident.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	if *updateGolden {
		if err := os.WriteFile(path, []byte(hex.EncodeToString(got)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.TrimSpace(string(text)); hex.EncodeToString(got) != want {
		t.Errorf("%s:\n got %x\nwant %s", name, got, want)
	}
}

func goldenStart() *Start {
	return &Start{
		Member: 3, Nonce: "n0nce", Boot: "b00t", Name: "c", Version: 1,
		PeerURLs: []string{"http://c:2380"}, ClientURLs: []string{"http://c:2379"},
	}
}

func goldenChange() *Change {
	return &Change{Kind: AddMember, Member: Member{ID: 1<<53 - 1, Name: "x", PeerURLs: []string{"http://x:1"}, KeepLearner: true}}
}

var goldenID = BatchID{Member: 3, Incarnation: 300, Sequence: 70000}

func TestPayloadGolden(t *testing.T) {
	golden(t, "batch", EncodeBatch(goldenID, [][]byte{[]byte("one"), {}, bytes.Repeat([]byte{0xff}, 130)}))
	golden(t, "start", EncodeStart(goldenStart()))
	golden(t, "change", EncodeChange(goldenID, goldenChange()))
}

func TestPayloadRoundTrip(t *testing.T) {
	for _, commands := range [][][]byte{{}, {{}}, {[]byte("a")}, {[]byte("a"), {}, make([]byte, 1<<17)}} {
		p := EncodeBatch(goldenID, commands)
		if o, ok := PeekBatch(p); !ok || o != goldenID {
			t.Errorf("peek: %v %v", o, ok)
		}
		kind, body, err := openPayload(p)
		if err != nil || kind != kindBatch {
			t.Fatalf("open: %v %v", kind, err)
		}
		o, got, err := decodeBatch(body)
		if err != nil || o != goldenID || len(got) != len(commands) {
			t.Fatalf("decode: %v %d commands, %v", o, len(got), err)
		}
		for i := range got {
			if !bytes.Equal(got[i], commands[i]) {
				t.Errorf("command %d differs", i)
			}
		}
	}
	_, body, _ := openPayload(EncodeStart(goldenStart()))
	if s, err := decodeStart(body); err != nil || !reflect.DeepEqual(s, goldenStart()) {
		t.Errorf("start: %+v %v", s, err)
	}
	_, body, _ = openPayload(EncodeChange(goldenID, goldenChange()))
	if o, c, err := decodeChange(body); err != nil || o != goldenID || !reflect.DeepEqual(c, goldenChange()) {
		t.Errorf("change: %v %+v %v", o, c, err)
	}
}

// TestPayloadDamage flips every bit and cuts at every length: no damaged
// payload is accepted.
func TestPayloadDamage(t *testing.T) {
	whole := EncodeBatch(goldenID, [][]byte{[]byte("one"), []byte("two")})
	for i := range whole {
		if _, _, err := openPayload(whole[:i]); err == nil {
			t.Errorf("cut to %d bytes it opens", i)
		}
		for bit := range 8 {
			p := bytes.Clone(whole)
			p[i] ^= 1 << bit
			if _, _, err := openPayload(p); !errors.Is(err, errChecksum) {
				t.Errorf("bit %d of byte %d flipped: %v", bit, i, err)
			}
		}
	}
}

func TestPayloadUnknownVersionIsRefused(t *testing.T) {
	p := sealPayload([]byte{PayloadVersion + 1, byte(kindBatch), 1, 1, 1, 0})
	if _, _, err := openPayload(p); err == nil || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("got %v", err)
	}
	if _, ok := PeekBatch(p); ok {
		t.Error("peek takes an unknown version")
	}
}

// TestPayloadNonsense has valid checksums and invalid contents.
func TestPayloadNonsense(t *testing.T) {
	for _, body := range [][]byte{
		{},
		{1, 1},
		{1, 1, 1},                 // no count
		{1, 1, 1, 200, 1},         // more commands than bytes
		{1, 1, 1, 1, 5, 'a'},      // a command beyond the end
		{1, 1, 1, 1, 1, 'a', 'b'}, // something left over
		bytes.Repeat([]byte{0xff}, 11),
	} {
		if _, _, err := decodeBatch(body); !errors.Is(err, errMalformed) {
			t.Errorf("batch %x: %v", body, err)
		}
	}
	if _, err := decodeStart([]byte("{")); !errors.Is(err, errMalformed) {
		t.Errorf("start: %v", err)
	}
	if _, _, err := decodeChange([]byte{1, 1, 1, '['}); !errors.Is(err, errMalformed) {
		t.Errorf("change: %v", err)
	}
}

func TestPayloadKindString(t *testing.T) {
	if got := fmt.Sprint(kindBatch, kindStart, kindChange, payloadKind(9)); got != "batch start change kind 9" {
		t.Error(got)
	}
}

// FuzzPayload: no input panics; what opens and decodes as a batch encodes to
// an equivalent one.
func FuzzPayload(f *testing.F) {
	f.Add(EncodeBatch(goldenID, [][]byte{[]byte("one"), {}}))
	f.Add(EncodeStart(goldenStart()))
	f.Add(EncodeChange(goldenID, goldenChange()))
	f.Add(sealPayload([]byte{PayloadVersion, byte(kindBatch), 1, 1, 1, 255, 255, 255, 255, 15}))
	f.Fuzz(func(t *testing.T, data []byte) {
		checkPayload(t, data)
		// Most inputs fail the checksum, so the contents get a valid
		// one, too.
		checkPayload(t, sealPayload(append([]byte{PayloadVersion}, data...)))
	})
}

func checkPayload(t *testing.T, data []byte) {
	peeked, isBatch := PeekBatch(data)
	kind, body, err := openPayload(data)
	if err != nil {
		return
	}
	switch kind {
	case kindBatch:
		o, commands, err := decodeBatch(body)
		if err != nil {
			return
		}
		if !isBatch || peeked != o {
			t.Fatalf("peek says %v %v, decode %v", peeked, isBatch, o)
		}
		_, again, err := openPayload(EncodeBatch(o, commands))
		if err != nil {
			t.Fatal(err)
		}
		o2, commands2, err := decodeBatch(again)
		if err != nil || o2 != o || !reflect.DeepEqual(commands, commands2) {
			t.Fatalf("round trip: %v %v %v", o2, commands2, err)
		}
	case kindStart:
		_, _ = decodeStart(body)
	case kindChange:
		_, _, _ = decodeChange(body)
	}
}

// TestLargestBatch: the largest proposal and the batch of the most commands fit into
// the largest entry.
func TestLargestBatch(t *testing.T) {
	id := BatchID{Member: math.MaxUint64, Incarnation: math.MaxUint64, Sequence: math.MaxUint64}
	group := make([][]byte, limits.MaxGroupCommands)
	for i := range group {
		group[i] = make([]byte, 4)
	}
	group[0] = make([]byte, limits.MaxProposalBytes-4*(len(group)-1))
	many := make([][]byte, limits.MaxBatchBytes/4)
	for i := range many {
		many[i] = make([]byte, 4)
	}
	for name, commands := range map[string][][]byte{"group": group, "many": many, "one": {make([]byte, limits.MaxProposalBytes)}} {
		if n := len(EncodeBatch(id, commands)); n > limits.MaxEntryBytes {
			t.Errorf("%s: the entry has %d bytes, the limit is %d", name, n, limits.MaxEntryBytes)
		}
	}
}
