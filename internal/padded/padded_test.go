package padded

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"testing"
)

// wrapped returns a body in the form.
func wrapped(body []byte) []byte {
	out := append(bytes.Clone(body), Padding(int64(len(body)))...)
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

func content(t testing.TB, file []byte) []byte {
	t.Helper()
	r, err := Body(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Bodies of all sizes come back, and have the size that etcdctl wants.
func TestBodies(t *testing.T) {
	for n := range 1100 {
		body := bytes.Repeat([]byte{byte(n)}, n)
		file := wrapped(body)
		if len(file)%512 != 32 {
			t.Fatalf("a body of %d bytes became %d", n, len(file))
		}
		if got := content(t, file); !bytes.Equal(got, body) {
			t.Fatalf("a body of %d bytes came back with %d", n, len(got))
		}
	}
}

// What is not in the form, or damaged, comes back as it is.
func TestOtherFiles(t *testing.T) {
	file := wrapped([]byte("body"))
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1
		if got := content(t, bad); !bytes.Equal(got, bad) {
			t.Fatalf("with a damaged byte %d it came back with %d bytes", i, len(got))
		}
	}
	for _, n := range []int{0, 1, 31, 32, 33, 512, 544, 1056} {
		if plain := bytes.Repeat([]byte{7}, n); !bytes.Equal(content(t, plain), plain) {
			t.Errorf("a file of %d bytes did not come back", n)
		}
	}
}

// FuzzBody: a body comes back from its form, whatever it ends with, and of any other file
// nothing is missing.
func FuzzBody(f *testing.F) {
	for _, n := range []int{0, 1, 478, 479, 480, 509, 510, 511, 512} {
		f.Add(wrapped(bytes.Repeat([]byte{2, 0}, n)), uint16(n))
	}
	f.Add([]byte("short"), uint16(2))
	f.Fuzz(func(t *testing.T, file []byte, padding uint16) {
		if got := content(t, wrapped(file)); !bytes.Equal(got, file) {
			t.Fatalf("a body of %d bytes came back with %d", len(file), len(got))
		}
		got := content(t, file)
		if !bytes.Equal(got, file) && (len(file) <= sha256.Size || !bytes.HasPrefix(file, got) || len(file)%blockBytes != sha256.Size) {
			t.Fatalf("a file of %d bytes came back with %d", len(file), len(got))
		}
		// A sum that is right, behind a padding of any length.
		file = append(file, make([]byte, blockBytes-(len(file)+lengthBytes)%blockBytes)...)
		file = binary.LittleEndian.AppendUint16(file, padding)
		sum := sha256.Sum256(file)
		n := len(file) - int(padding)
		if padding < lengthBytes || n < 0 {
			n = len(file) + sha256.Size
		}
		if got := content(t, append(file, sum[:]...)); len(got) != n {
			t.Fatalf("with a padding of %d, a file of %d bytes has a body of %d", padding, len(file), len(got))
		}
	})
}
