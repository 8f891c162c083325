package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"testing"
	"time"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// signer makes tokens in a test.
type signer struct {
	name string
	key  crypto.Signer
}

func (s signer) pem(t testing.TB) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must[[]byte](t)(x509.MarshalPKIXPublicKey(s.key.Public()))})
}

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func (s signer) token(t testing.TB, header, claims string) string {
	t.Helper()
	text := b64(header) + "." + b64(claims)
	m := methods[s.name]
	digest, opts := []byte(text), crypto.SignerOpts(m.hash)
	if m.hash != 0 {
		h := m.hash.New()
		h.Write(digest)
		digest = h.Sum(nil)
	}
	if strings.HasPrefix(s.name, "PS") {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: m.hash}
	}
	var signature []byte
	if k, ok := s.key.(*ecdsa.PrivateKey); ok {
		a, b, err := ecdsa.Sign(rand.Reader, k, digest)
		if err != nil {
			t.Fatal(err)
		}
		size := (k.Curve.Params().BitSize + 7) / 8
		signature = append(a.FillBytes(make([]byte, size)), b.FillBytes(make([]byte, size))...)
	} else {
		signature = must[[]byte](t)(s.key.Sign(rand.Reader, digest, opts))
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func signers(t testing.TB) []signer {
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec := func(c elliptic.Curve) crypto.Signer {
		return must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(c, rand.Reader))
	}
	return []signer{
		{"RS256", rsaKey}, {"RS384", rsaKey}, {"RS512", rsaKey}, {"PS256", rsaKey}, {"PS384", rsaKey}, {"PS512", rsaKey},
		{"ES256", ec(elliptic.P256())}, {"ES384", ec(elliptic.P384())}, {"ES512", ec(elliptic.P521())}, {"EdDSA", ed},
	}
}

var now = time.Unix(1_800_000_000, 0)

// TestVerify: every method takes its own tokens and no others.
func TestVerify(t *testing.T) {
	all := signers(t)
	if len(all) != len(methods) {
		t.Errorf("%d methods of %d are tested", len(all), len(methods))
	}
	for _, s := range all {
		v := must[*Verifier](t)(New(s.name, s.pem(t)))
		header := `{"alg":"` + s.name + `","typ":"JWT"}`
		good := s.token(t, header, `{"username":"ann","revision":7,"exp":1800000001,"nbf":1800000000}`)
		if c, err := v.Verify(good, now); err != nil || c != (Claims{User: "ann", Revision: 7}) {
			t.Errorf("%s: %+v, %v", s.name, c, err)
		}
		for _, other := range all {
			if other.name == s.name {
				continue
			}
			// The header says what is expected, and the signature is another one.
			if _, err := v.Verify(other.token(t, header, `{"username":"ann","revision":7}`), now); err == nil {
				t.Errorf("%s takes a token of %s", s.name, other.name)
			}
		}
		for i := range good {
			other := "A"
			if good[i] == 'A' {
				other = "B"
			}
			if _, err := v.Verify(good[:i]+other+good[i+1:], now); err == nil {
				t.Fatalf("%s: with byte %d of %s changed, the token is taken", s.name, i, good)
			}
		}
	}
}

// TestRefused has tokens with a good signature that say what must not be taken, and those
// that choose a method.
func TestRefused(t *testing.T) {
	s := signers(t)[0]
	v := must[*Verifier](t)(New(s.name, s.pem(t)))
	const header, claims = `{"alg":"RS256"}`, `{"username":"ann","revision":7}`
	if _, err := v.Verify(s.token(t, header, claims), now); err != nil {
		t.Fatal(err)
	}
	secret := hmac.New(sha256.New, s.pem(t))
	confused := b64(`{"alg":"HS256"}`) + "." + b64(claims)
	secret.Write([]byte(confused))
	for name, token := range map[string]string{
		"expired":           s.token(t, header, `{"username":"ann","revision":7,"exp":1800000000}`),
		"not yet":           s.token(t, header, `{"username":"ann","revision":7,"nbf":1800000001}`),
		"nobody":            s.token(t, header, `{"revision":7}`),
		"without revision":  s.token(t, header, `{"username":"ann"}`),
		"negative revision": s.token(t, header, `{"username":"ann","revision":-1}`),
		"large revision":    s.token(t, header, `{"username":"ann","revision":1e300}`),
		"other spelling":    s.token(t, header, `{"Username":"ann","revision":7}`),
		"null":              s.token(t, header, `{"username":"ann","revision":7,"exp":null}`),
		"something behind":  s.token(t, header, claims+`{}`),
		"other method":      s.token(t, `{"alg":"RS384"}`, claims),
		"no method":         s.token(t, `{"alg":"none"}`, claims),
		"critical":          s.token(t, `{"alg":"RS256","crit":["b64"]}`, claims),
		"no JSON":           s.token(t, header, `ann`),
		"unsigned":          b64(`{"alg":"none"}`) + "." + b64(claims) + ".",
		"shared secret":     confused + "." + base64.RawURLEncoding.EncodeToString(secret.Sum(nil)),
		"four parts":        s.token(t, header, claims) + ".x",
		"long":              s.token(t, header, `{"username":"`+strings.Repeat("a", maxBytes)+`","revision":7}`),
		"empty":             "",
	} {
		if c, err := v.Verify(token, now); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// TestOtherClaims: claims that a signer leaves to its users do not become the known ones.
func TestOtherClaims(t *testing.T) {
	s := signers(t)[9]
	v := must[*Verifier](t)(New(s.name, s.pem(t)))
	token := s.token(t, `{"alg":"EdDSA","ALG":"none","Crit":[]}`, `{"username":"ann","revision":7,"exp":1800000001,"Username":"root","EXP":1,"Revision":9}`)
	if c, err := v.Verify(token, now); err != nil || c != (Claims{"ann", 7}) {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestKeys: keys that do not fit are refused when the node starts.
func TestKeys(t *testing.T) {
	all := signers(t)
	if _, err := New("RS256", all[6].pem(t)); err == nil || !strings.Contains(err.Error(), "does not fit") {
		t.Errorf("a key of another kind: %v", err)
	}
	if _, err := New("ES384", all[6].pem(t)); err == nil {
		t.Error("a key of another curve is taken")
	}
	if _, err := New("HS256", all[0].pem(t)); err == nil || !strings.Contains(err.Error(), "not supported") {
		t.Errorf("a shared secret: %v", err)
	}
	if _, err := New("RS256", []byte("key")); err == nil {
		t.Error("a file without a key is taken")
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must[[]byte](t)(x509.MarshalPKCS8PrivateKey(all[0].key))})
	v := must[*Verifier](t)(New("RS256", private))
	if _, err := v.Verify(all[0].token(t, `{"alg":"RS256"}`, `{"username":"ann","revision":7}`), now); err != nil {
		t.Error(err)
	}
}
