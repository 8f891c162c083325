// Package jwt verifies JSON Web Tokens that name the user and were signed elsewhere, in the
// form that etcd's --auth-token=jwt accepts. It does not sign tokens.
//
// Only the signing method that the operator has configured is accepted. The method in the
// header of a token must match it and is otherwise ignored: a token that could choose its
// method could choose "none", or use the public key as a shared secret.
package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	_ "crypto/sha256" // for crypto.Hash.New
	_ "crypto/sha512"
)

// maxBytes bounds a token. The header of a request may be longer.
const maxBytes = 8 << 10

// method is how tokens are signed.
type method struct {
	hash crypto.Hash
	// fits reports whether a key is one of the method, and check whether it made a
	// signature of a digest; of the text itself without a hash.
	fits  func(key crypto.PublicKey) bool
	check func(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool
}

var methods = map[string]method{
	"RS256": {crypto.SHA256, isRSA, checkRSA}, "RS384": {crypto.SHA384, isRSA, checkRSA}, "RS512": {crypto.SHA512, isRSA, checkRSA},
	"PS256": {crypto.SHA256, isRSA, checkPSS}, "PS384": {crypto.SHA384, isRSA, checkPSS}, "PS512": {crypto.SHA512, isRSA, checkPSS},
	"ES256": {crypto.SHA256, isEC(256), checkEC}, "ES384": {crypto.SHA384, isEC(384), checkEC}, "ES512": {crypto.SHA512, isEC(521), checkEC},
	"EdDSA": {0, isEd, checkEd},
}

// minRSABits is below what anybody should still use.
const minRSABits = 2048

func isRSA(key crypto.PublicKey) bool {
	k, ok := key.(*rsa.PublicKey)
	return ok && k.N.BitLen() >= minRSABits
}

func checkRSA(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	return rsa.VerifyPKCS1v15(key.(*rsa.PublicKey), hash, digest, signature) == nil
}

func checkPSS(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	return rsa.VerifyPSS(key.(*rsa.PublicKey), hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
}

func isEC(bits int) func(crypto.PublicKey) bool {
	return func(key crypto.PublicKey) bool {
		k, ok := key.(*ecdsa.PublicKey)
		return ok && k.Curve.Params().BitSize == bits
	}
}

// checkEC takes the two numbers of a signature one after the other, each as long as the
// curve (RFC 7518).
func checkEC(key crypto.PublicKey, _ crypto.Hash, digest, signature []byte) bool {
	k := key.(*ecdsa.PublicKey)
	size := (k.Curve.Params().BitSize + 7) / 8
	if len(signature) != 2*size {
		return false
	}
	return ecdsa.Verify(k, digest, new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:]))
}

func isEd(key crypto.PublicKey) bool { _, ok := key.(ed25519.PublicKey); return ok }

func checkEd(key crypto.PublicKey, _ crypto.Hash, text, signature []byte) bool {
	return ed25519.Verify(key.(ed25519.PublicKey), text, signature)
}

// Verifier takes the tokens of one signer.
type Verifier struct {
	name string
	method
	key crypto.PublicKey
}

// New returns a Verifier of tokens that are signed by a method of RFC 7518. pemKey is the
// public key, a certificate with it, or the private key.
func New(name string, pemKey []byte) (*Verifier, error) {
	m, known := methods[name]
	if !known {
		return nil, fmt.Errorf("sign-method %q is not supported; use RS256, PS256, ES256, EdDSA, or a longer hash of one of these", name)
	}
	key, err := parseKey(pemKey)
	if err != nil {
		return nil, err
	}
	if !m.fits(key) {
		return nil, fmt.Errorf("the key does not fit sign-method %s, or is too short", name)
	}
	return &Verifier{name, m, key}, nil
}

// Claims are what a token says.
type Claims struct {
	User string
	// Revision is the one of the users and roles, as etcd counts it, when the token was
	// made. The token is not to be taken after an edit.
	Revision uint64
}

// maxRevision is the largest number that every reader of JSON reads alike.
const maxRevision = 1 << 53

var errToken = errors.New("token is not valid")

// Verify returns what a token says, if its signature and its time are right.
func (v *Verifier) Verify(token string, now time.Time) (Claims, error) {
	text, last, found := cutLast(token)
	head, body, both := strings.Cut(text, ".")
	if len(token) > maxBytes || !found || !both || strings.Contains(body, ".") {
		return Claims{}, errToken
	}
	var algorithm string
	var critical json.RawMessage
	signature, err := base64.RawURLEncoding.Strict().DecodeString(last)
	if err != nil || decode(head, members{"alg": &algorithm, "crit": &critical}) != nil || algorithm != v.name || critical != nil {
		return Claims{}, errToken
	}
	digest := []byte(text)
	if v.hash != 0 {
		h := v.hash.New()
		_, _ = h.Write(digest) // never fails
		digest = h.Sum(nil)
	}
	var user string
	var revision, expires, notBefore *float64 // the times in seconds since 1970
	claims := members{"username": &user, "revision": &revision, "exp": &expires, "nbf": &notBefore}
	if !v.check(v.key, v.hash, digest, signature) || decode(body, claims) != nil {
		return Claims{}, errToken
	}
	at := float64(now.Unix())
	switch {
	case user == "" || revision == nil || *revision < 0 || *revision > maxRevision:
		return Claims{}, fmt.Errorf("%w: it has no username or no revision", errToken)
	case expires != nil && at >= *expires, notBefore != nil && at < *notBefore:
		return Claims{}, fmt.Errorf("%w: it has expired, or is not valid yet", errToken)
	}
	return Claims{user, uint64(*revision)}, nil
}

func cutLast(token string) (before, after string, found bool) {
	i := strings.LastIndexByte(token, '.')
	if i < 0 {
		return token, "", false
	}
	return token[:i], token[i+1:], true
}

// members are the members of an object that are looked for, and what each is read into.
type members map[string]any

// decode reads a part of a token: the members by their exact names. To encoding/json,
// "Username" is another form of "username", and the later of the two counts; a signer that
// lets its users choose claims of their own would let them choose who they are. Null is no
// value: a token that says "exp":null does not say that it never expires.
func decode(part string, into members) error {
	text, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return err
	}
	var found map[string]json.RawMessage
	if err := json.Unmarshal(text, &found); err != nil {
		return err
	}
	for name, value := range into {
		switch text, ok := found[name]; {
		case !ok:
		case string(text) == "null":
			return errToken
		default:
			if err := json.Unmarshal(text, value); err != nil {
				return err
			}
		}
	}
	return nil
}
