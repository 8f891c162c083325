package access

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"time"
)

// The prefixes distinguish the kinds of secrets, and let scanners find leaked ones.
const (
	secretPrefix = "kvd_"
	loginPrefix  = "kvdl_"
)

// NewSecret returns a secret of 256 random bits for a token, and its SHA-256. Only the
// latter may be stored.
func NewSecret() (secret string, sum [sha256.Size]byte) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
	secret = secretPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	return secret, Sum(secret)
}

// Sum returns the SHA-256 of a secret.
func Sum(secret string) [sha256.Size]byte { return sha256.Sum256([]byte(secret)) }

// keyTimeBytes is the length of the creation time at the start of a signing key, in Unix
// milliseconds.
const keyTimeBytes = 8

// NewKey returns a new key to sign logins with.
func NewKey(now time.Time) []byte {
	key := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
	var b [32]byte
	_, _ = rand.Read(b[:])
	return append(key, b[:]...)
}

// keyMade returns when a key was created; the zero time if the key is too short.
func keyMade(key []byte) time.Time {
	if len(key) <= keyTimeBytes {
		return time.Time{}
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(key)))
}

// login is the content of a login token.
type login struct {
	revision uint64 // of the rights when it was issued
	expires  int64  // Unix time in milliseconds
	user     string
}

// loginVersion begins what is signed.
const loginVersion = 1

func (l *login) payload() []byte {
	b := binary.AppendUvarint([]byte{loginVersion}, l.revision)
	b = binary.AppendUvarint(b, uint64(l.expires))
	return append(b, l.user...)
}

// sign returns the token. The MAC includes the hash of the user's password, so a new
// password invalidates the token.
func (l *login) sign(key, hash []byte) string {
	payload := l.payload()
	b64 := base64.RawURLEncoding
	return loginPrefix + b64.EncodeToString(payload) + "." + b64.EncodeToString(mac(key, payload, hash))
}

// mac returns the MAC of a token. The length of the payload keeps payload and hash apart.
func mac(key, payload, hash []byte) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write(binary.AppendUvarint([]byte("kvd login\x00"), uint64(len(payload)))) // never fails
	_, _ = h.Write(payload)
	_, _ = h.Write(hash)
	return h.Sum(nil)
}

var errNotALogin = errors.New("not a login token")

// parseLogin parses a token. It does not verify the MAC.
func parseLogin(token string) (l login, payload, sum []byte, err error) {
	text, found := strings.CutPrefix(token, loginPrefix)
	first, second, both := strings.Cut(text, ".")
	if !found || !both {
		return l, nil, nil, errNotALogin
	}
	b64 := base64.RawURLEncoding.Strict()
	payload, err1 := b64.DecodeString(first)
	sum, err2 := b64.DecodeString(second)
	// The decoder skips line breaks, so the lengths decide, too.
	if err1 != nil || err2 != nil || len(first) != b64.EncodedLen(len(payload)) || len(second) != b64.EncodedLen(sha256.Size) || len(payload) == 0 || payload[0] != loginVersion {
		return l, nil, nil, errNotALogin
	}
	revision, n := binary.Uvarint(payload[1:])
	expires, m := binary.Uvarint(payload[1+max(n, 0):])
	if n <= 0 || m <= 0 {
		return l, nil, nil, errNotALogin
	}
	l = login{revision: revision, expires: int64(expires), user: string(payload[1+n+m:])}
	return l, payload, sum, nil
}

// signedBy reports whether the MAC is valid for one of the keys.
func signedBy(keys [][]byte, payload, hash, sum []byte) bool {
	for _, key := range keys {
		if hmac.Equal(mac(key, payload, hash), sum) {
			return true
		}
	}
	return false
}
