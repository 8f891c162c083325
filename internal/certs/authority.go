package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// clockSkew is how far in the past a new certificate becomes valid, for machines
// whose clocks are behind.
const clockSkew = 5 * time.Minute

// Authority is a small certificate authority. It is enough to try TLS, and for a
// cluster whose operator can keep one file safe.
type Authority struct {
	CertPEM []byte
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

// NewAuthority returns a new authority that is valid until notAfter.
func NewAuthority(name string, notAfter time.Time) (*Authority, error) {
	key, serial, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := sign(&x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-clockSkew), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil, key, key)
	if err != nil {
		return nil, err
	}
	return authorityOf(der, key)
}

func authorityOf(der []byte, key *ecdsa.PrivateKey) (*Authority, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{CertPEM: toPEM("CERTIFICATE", der), cert: cert, key: key}, nil
}

// KeyPEM returns the private key of the authority.
func (a *Authority) KeyPEM() ([]byte, error) { return keyToPEM(a.key) }

// Order describes a certificate to issue.
type Order struct {
	Name     string   // the subject's common name, for people
	Hosts    []string // names and addresses; none for a certificate for clients only
	NotAfter time.Time
	// NotBefore defaults to a little before now.
	NotBefore time.Time
}

// Issue creates a key and its certificate. With hosts, the certificate is for servers
// and for clients, as the members of a cluster need it; without, for clients only.
func (a *Authority) Issue(o Order) (certPEM, keyPEM []byte, err error) {
	key, serial, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	if o.NotBefore.IsZero() {
		o.NotBefore = time.Now().Add(-clockSkew)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: o.Name},
		NotBefore: o.NotBefore, NotAfter: o.NotAfter, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(o.Hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range o.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := sign(template, a.cert, key, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate %q: %w", o.Name, err)
	}
	keyPEM, err = keyToPEM(key)
	return toPEM("CERTIFICATE", der), keyPEM, err
}

// Revoke returns a list of all revoked certificates. The number must increase from
// list to list. The list should be replaced before nextUpdate.
func (a *Authority) Revoke(number int64, nextUpdate time.Time, revoked ...*x509.Certificate) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-clockSkew), NextUpdate: nextUpdate}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		return nil, err
	}
	return toPEM("X509 CRL", der), nil
}

func newKey() (*ecdsa.PrivateKey, *big.Int, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	return key, serial, err
}

// sign returns the signed certificate. Without a parent, it is self-signed.
func sign(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) ([]byte, error) {
	if parent == nil {
		parent = template
	}
	return x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
}

func keyToPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return toPEM("PRIVATE KEY", der), nil
}

func toPEM(kind string, der []byte) []byte {
	var out bytes.Buffer
	_ = pem.Encode(&out, &pem.Block{Type: kind, Bytes: der}) // a buffer never fails
	return out.Bytes()
}
