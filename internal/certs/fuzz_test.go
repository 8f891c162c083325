package certs

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"
)

// fixedAuthority is the same in each process, so that a corpus can have what it signed.
func fixedAuthority(t testing.TB, name string, seed byte) (*x509.Certificate, ed25519.PrivateKey) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(4e9, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{seed},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

// listOf returns a revocation list of an authority.
func listOf(t testing.TB, ca *x509.Certificate, key ed25519.PrivateKey, serials ...int64) []byte {
	template := &x509.RevocationList{Number: big.NewInt(int64(len(serials) + 1)), ThisUpdate: time.Unix(1, 0), NextUpdate: time.Unix(4e9, 0)}
	for _, s := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: time.Unix(1, 0)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// FuzzRevocations: only lists that an authority signed are taken (B3), all of them, and they
// revoke exactly what they name.
func FuzzRevocations(f *testing.F) {
	one, key := fixedAuthority(f, "authority", 1)
	namesake, otherKey := fixedAuthority(f, "authority", 2)
	stranger, strangeKey := fixedAuthority(f, "stranger", 3)
	known := map[string][]int64{} // by what is signed
	pemOf := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) }
	var all []byte
	for _, serials := range [][]int64{{}, {5}, {6, 7}} {
		for _, der := range [][]byte{listOf(f, one, key, serials...), listOf(f, namesake, otherKey, serials...)} {
			list, err := x509.ParseRevocationList(der)
			if err != nil {
				f.Fatal(err)
			}
			known[string(list.RawTBSRevocationList)] = serials
			f.Add(der)
			f.Add(pemOf(der))
			all = append(all, pemOf(der)...)
		}
	}
	f.Add(all)
	f.Add(append(all, pemOf(listOf(f, stranger, strangeKey, 9))...))
	f.Add(fixedPEM(one))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRevocations(data, []*x509.Certificate{one, namesake})
		if err != nil {
			return
		}
		lists, err := splitLists(data)
		if err != nil || len(lists) == 0 {
			t.Fatalf("%d lists, %v", len(lists), err)
		}
		var want []int64
		for _, der := range lists {
			list, err := x509.ParseRevocationList(der)
			if err != nil {
				t.Fatal(err)
			}
			serials, ok := known[string(list.RawTBSRevocationList)]
			if !ok {
				t.Fatalf("a list is taken that nobody signed: %x", der)
			}
			want = append(want, serials...)
		}
		for serial := range int64(10) {
			cert := &x509.Certificate{SerialNumber: big.NewInt(serial)}
			if got := r.has(cert, one) || r.has(cert, namesake); got != slices.Contains(want, serial) {
				t.Fatalf("%d is revoked: %v", serial, got)
			}
			if r.has(cert, stranger) {
				t.Fatalf("%d of a stranger is revoked", serial)
			}
		}
	})
}

func fixedPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// FuzzAuthorities: what is read as authorities are certificates of authorities, and the same
// ones when they are written again.
func FuzzAuthorities(f *testing.F) {
	one, _ := fixedAuthority(f, "one", 1)
	two, _ := fixedAuthority(f, "two", 2)
	f.Add(fixedPEM(one))
	f.Add(append(append([]byte("text\n"), fixedPEM(two)...), fixedPEM(one)...))
	f.Add(append(fixedPEM(one), "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"...))
	f.Fuzz(func(t *testing.T, text []byte) {
		authorities, err := parseAuthorities(text)
		if err != nil {
			return
		}
		var again []byte
		for _, a := range authorities {
			if a.BasicConstraintsValid && !a.IsCA {
				t.Fatalf("%q is no authority", a.Subject)
			}
			again = append(again, fixedPEM(a)...)
		}
		second, err := parseAuthorities(again)
		if err != nil || len(authorities) == 0 || !slices.EqualFunc(second, authorities, (*x509.Certificate).Equal) {
			t.Fatalf("%d authorities became %d, %v", len(authorities), len(second), err)
		}
	})
}
