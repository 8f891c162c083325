package jwt

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
)

// parsers read the keys in the blocks of a PEM file.
var parsers = map[string]func(der []byte) (any, error){
	"CERTIFICATE": func(der []byte) (any, error) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		return c.PublicKey, nil
	},
	"PUBLIC KEY":      x509.ParsePKIXPublicKey,
	"RSA PUBLIC KEY":  func(der []byte) (any, error) { return x509.ParsePKCS1PublicKey(der) },
	"PRIVATE KEY":     x509.ParsePKCS8PrivateKey,
	"RSA PRIVATE KEY": func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) },
	"EC PRIVATE KEY":  func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) },
}

var errKey = errors.New("there is no key; the file must have a public key, a certificate, or a private key, as PEM")

// parseKey returns the first public key of a PEM file, or that of the first private key.
func parseKey(text []byte) (crypto.PublicKey, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		parse := parsers[block.Type]
		if parse == nil {
			continue
		}
		key, err := parse(block.Bytes)
		if err != nil {
			return nil, err
		}
		if private, ok := key.(interface{ Public() crypto.PublicKey }); ok {
			return private.Public(), nil
		}
		return key, nil
	}
	return nil, errKey
}
