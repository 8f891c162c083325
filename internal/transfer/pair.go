package transfer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kvd-io/kvd/client"
)

// PairJSON is a pair as the HTTP interface has it: byte strings that are not text
// are in base64.
type PairJSON struct {
	Key            *string `json:"key,omitempty"`
	KeyBase64      []byte  `json:"key_base64,omitempty"`
	Value          *string `json:"value,omitempty"`
	ValueBase64    []byte  `json:"value_base64,omitempty"`
	CreateRevision uint64  `json:"create_revision,omitempty"`
	ModRevision    uint64  `json:"mod_revision"`
	Version        uint64  `json:"version,omitempty"`
	// Lease is nil only in the event of a deletion.
	Lease *LeaseID `json:"lease,omitempty"`
}

// LeaseID is the id of a lease, a string in JSON where a number would lose digits.
type LeaseID int64

// maxExact is the first number that JSON readers may round.
const maxExact = 1 << 53

// MarshalJSON implements json.Marshaler.
func (id LeaseID) MarshalJSON() ([]byte, error) {
	text := strconv.FormatInt(int64(id), 10)
	if id >= maxExact {
		text = `"` + text + `"`
	}
	return []byte(text), nil
}

// UnmarshalJSON implements json.Unmarshaler, for either form.
func (id *LeaseID) UnmarshalJSON(text []byte) error {
	n, err := strconv.ParseInt(strings.Trim(string(text), `"`), 10, 64)
	*id = LeaseID(n)
	return err
}

// KeyText returns the key.
func (p *PairJSON) KeyText() string { return textOr(p.Key, p.KeyBase64) }

// ValueText returns the value.
func (p *PairJSON) ValueText() string { return textOr(p.Value, p.ValueBase64) }

// HasValue reports whether there is a value, which may be empty.
func (p *PairJSON) HasValue() bool { return p.Value != nil || p.ValueBase64 != nil }

func (p *PairJSON) leased() bool { return p.Lease != nil && *p.Lease != 0 }

func textOr(plain *string, encoded []byte) string {
	if plain != nil {
		return *plain
	}
	return string(encoded)
}

// Document is a pair with its value.
func Document(kv *client.KV) *PairJSON {
	doc := KeyDocument(kv)
	doc.Value, doc.ValueBase64 = Bytes(string(kv.Value))
	return doc
}

// KeyDocument is a pair without its value.
func KeyDocument(kv *client.KV) *PairJSON {
	lease := LeaseID(kv.Lease)
	doc := &PairJSON{CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version, Lease: &lease}
	doc.Key, doc.KeyBase64 = Bytes(kv.Key)
	return doc
}

// Bytes returns a byte string in the form that suits it.
func Bytes(b string) (plain *string, encoded []byte) {
	if utf8.ValidString(b) {
		return &b, nil
	}
	return nil, []byte(b)
}

// digest is a hash over pairs in their order: SHA-256 over the length and the bytes
// of each key and each value. The lengths keep "a"="bc" and "ab"="c" apart.
type digest struct {
	hash  hash.Hash
	pairs uint64
}

func newDigest() *digest { return &digest{hash: sha256.New()} }

func (d *digest) add(key string, value []byte) {
	d.pairs++
	for _, b := range [][]byte{[]byte(key), value} {
		d.hash.Write(binary.AppendUvarint(nil, uint64(len(b))))
		d.hash.Write(b)
	}
}

// String returns the hash of the pairs so far.
func (d *digest) String() string { return hex.EncodeToString(d.hash.Sum(nil)) }

// After returns the first key behind all that begin with the prefix; "" if there is
// no such key.
func After(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return ""
}
