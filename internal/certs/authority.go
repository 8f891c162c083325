package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// clockSkew is how much earlier than now a new certificate begins, for
// machines whose clocks are behind.
const clockSkew = 5 * time.Minute

// Authority is a small certificate authority: enough to try TLS out, and for
// a cluster whose operator keeps one file safe.
type Authority struct {
	CertPEM []byte
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

// NewAuthority makes one that is good until the time given.
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

// OpenAuthority reads one that was written before.
func OpenAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	certs, err := parseAuthorities(certPEM)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("the key is not in PEM form")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	return authorityOf(certs[0].Raw, key)
}

func authorityOf(der []byte, key *ecdsa.PrivateKey) (*Authority, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{CertPEM: toPEM("CERTIFICATE", der), cert: cert, key: key}, nil
}

// KeyPEM is the key of the authority.
func (a *Authority) KeyPEM() ([]byte, error) { return keyToPEM(a.key) }

// Order describes a certificate to be issued.
type Order struct {
	Name     string   // the subject's common name, for people
	Hosts    []string // names and addresses; none for a certificate of clients only
	NotAfter time.Time
	// NotBefore is a little before now where it is zero.
	NotBefore time.Time
}

// Issue makes a key and its certificate. With hosts it is for servers and
// clients, as a member of a cluster needs it, else for clients only.
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
		return nil, nil, fmt.Errorf("certificate of %s: %w", o.Name, err)
	}
	keyPEM, err = keyToPEM(key)
	return toPEM("CERTIFICATE", der), keyPEM, err
}

// Revoke makes the list of all the certificates that are to be void. The
// number must grow from list to list; the list stands for the time given.
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

// sign makes the certificate; without a parent it signs itself.
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
