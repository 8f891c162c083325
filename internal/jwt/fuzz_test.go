package jwt

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
)

// edSigner has a key that is always the same, so that a corpus can have its signatures.
func edSigner() signer {
	return signer{"EdDSA", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
}

// FuzzVerify: of what nobody signed, nothing is taken, and what is signed means what a
// second reader finds in it.
func FuzzVerify(f *testing.F) {
	const header, claims = `{"alg":"EdDSA"}`, `{"username":"ann","revision":7,"exp":1800000001,"nbf":1800000000}`
	s := edSigner()
	for _, c := range [][2]string{
		{header, claims}, {`{"alg":"none"}`, claims}, {`{"alg":"EdDSA","crit":null}`, claims}, {`{"ALG":"EdDSA"}`, claims}, {header, `{"username":"ann","Username":"root","revision":1}`},
		{header, `{"username":"ann","revision":1e300}`}, {header, `{"username":"ann","revision":1.5,"exp":null}`}, {header, `{"username":"a","username":"b","revision":0}{}`}, {header, "null"},
	} {
		f.Add(c[0], c[1], s.token(f, c[0], c[1]))
	}
	v := must[*Verifier](f)(New(s.name, s.pem(f)))
	f.Fuzz(func(t *testing.T, header, claims, token string) {
		// Whoever does not have the key can only repeat what was signed.
		if _, err := v.Verify(token, now); err == nil {
			text, _, _ := cutLast(token)
			head, body, _ := strings.Cut(text, ".")
			h, err1 := base64.RawURLEncoding.DecodeString(head)
			b, err2 := base64.RawURLEncoding.DecodeString(body)
			if err1 != nil || err2 != nil || s.token(t, string(h), string(b)) != token {
				t.Fatalf("%q is taken", token)
			}
		}
		c, err := v.Verify(s.token(t, header, claims), now)
		if err == nil {
			checkClaims(t, header, claims, c)
		}
	})
}

// checkClaims reads a token once more, as a map.
func checkClaims(t *testing.T, header, claims string, got Claims) {
	var h, c map[string]any
	if json.Unmarshal([]byte(header), &h) != nil || json.Unmarshal([]byte(claims), &c) != nil {
		t.Fatalf("%q %q is taken for %+v", header, claims, got)
	}
	at := float64(now.Unix())
	number := func(name string, otherwise float64) float64 {
		value, there := c[name]
		n, ok := value.(float64)
		switch {
		case !there:
			return otherwise
		case !ok:
			t.Fatalf("%q is taken, with %s %v", claims, name, value)
		}
		return n
	}
	revision := number("revision", -1)
	if _, critical := h["crit"]; critical || h["alg"] != "EdDSA" || c["username"] != got.User || got.User == "" || len(header)+len(claims) > maxBytes ||
		revision < 0 || revision-float64(got.Revision) >= 1 || float64(got.Revision) > revision || number("exp", at+1) <= at || number("nbf", at) > at {
		t.Fatalf("%q %q is taken for %+v", header, claims, got)
	}
}

// FuzzKey: a file from which a key is taken has it in a block of its own, and the key fits
// the method; nothing else of the file matters.
func FuzzKey(f *testing.F) {
	for _, s := range signers(f)[5:] {
		f.Add(s.name, s.pem(f))
		f.Add(s.name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must[[]byte](f)(x509.MarshalPKCS8PrivateKey(s.key))}))
	}
	f.Add("EdDSA", []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add("none", []byte{})
	f.Fuzz(func(t *testing.T, method string, file []byte) {
		v, err := New(method, file)
		if err != nil {
			return
		}
		der, err := x509.MarshalPKIXPublicKey(v.key)
		if err != nil {
			t.Fatalf("a key that cannot be written: %v", err)
		}
		again, err := New(method, append([]byte("text before it\n"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})...))
		if err != nil || !bytes.Equal(must[[]byte](t)(x509.MarshalPKIXPublicKey(again.key)), der) {
			t.Fatalf("the key written as a public key is another one: %v", err)
		}
		if _, err := v.Verify(b64(`{"alg":"`+method+`"}`)+"."+b64(`{"username":"ann","revision":7}`)+".AA", now); err == nil {
			t.Fatal("a signature of one byte is taken")
		}
	})
}
