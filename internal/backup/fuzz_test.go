package backup

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/padded"
)

// storeWith returns a store with some history.
func storeWith(t testing.TB, commands ...kvstore.Command) *kvstore.Store {
	s, err := kvstore.Open(engine.NewMemory(), kvstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range commands {
		e := []kvstore.Entry{{Index: uint64(i + 1), Term: 1, Commands: [][]byte{kvstore.EncodeCommand(nil, &commands[i])}}}
		if err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// bodyOf returns the body of a store.
func bodyOf(t testing.TB, s *kvstore.Store) []byte {
	v, err := s.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var b bytes.Buffer
	if _, err := v.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sealed returns a body as etcdctl saves it.
func sealed(body []byte) []byte {
	out := append(bytes.Clone(body), padded.Padding(int64(len(body)))...)
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

// FuzzBackup: a file that is verified can be restored, also in the form of etcdctl, and is
// then the state that the verification spoke of; and what cannot be restored is not verified.
func FuzzBackup(f *testing.F) {
	key, end := []byte("a"), []byte("b")
	good := bodyOf(f, storeWith(f, kvstore.Command{Op: kvstore.OpPut, Key: key, Value: []byte("1")}, kvstore.Command{Op: kvstore.OpPut, Key: key, Value: []byte("2")},
		kvstore.Command{Op: kvstore.OpDeleteRange, Key: key, End: end}, kvstore.Command{Op: kvstore.OpPut, Key: end, Value: bytes.Repeat([]byte("x"), 600)}))
	f.Add(good, uint16(0), byte(0))
	f.Add(good, uint16(len(good)-3), byte(1))
	f.Add(good[:len(good)/2], uint16(20), byte(0xff))
	f.Add(sealed(good), uint16(9), byte(0))
	f.Add(bodyOf(f, storeWith(f)), uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, file []byte, at uint16, flip byte) {
		if len(file) > 0 {
			file[int(at)%len(file)] ^= flip
		}
		info, err := verified(t, file)
		body, _ := padded.Body(bytes.NewReader(file), int64(len(file))) // memory does not fail
		plain := body.Size() == int64(len(file))
		if info2, err2 := verified(t, sealed(file)); plain && ((err == nil) != (err2 == nil) || err == nil && info2.StateHash != info.StateHash) {
			t.Fatalf("%v, and in the form of etcdctl %v", err, err2)
		}
		s := storeWith(t)
		if restored := s.Restore(body); (restored == nil) != (err == nil) {
			t.Fatalf("verified: %v, restored: %v", err, restored)
		}
		if err != nil {
			return
		}
		if _, hash := s.StateHash(); hash != info.StateHash || s.Revision() != info.Revision || s.Position() != info.Position {
			t.Fatalf("%+v was restored as revision %d at %+v, hash %x", info, s.Revision(), s.Position(), hash)
		}
		// A copy may differ in its bytes, but not in what it says.
		again, err := kvstore.VerifyBody(bytes.NewReader(bodyOf(t, s)))
		if err != nil || again.StateHash != info.StateHash || again.Keys != info.Keys || again.Records != info.Records {
			t.Fatalf("%+v was saved again as %+v, %v", info, again, err)
		}
	})
}

// verified verifies a backup in a file.
func verified(t *testing.T, content []byte) (kvstore.BodyInfo, error) {
	name := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	body, err := BodyIn(file)
	if err != nil {
		return kvstore.BodyInfo{}, err
	}
	return kvstore.VerifyBody(io.Reader(body))
}
