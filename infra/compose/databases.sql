-- Run once by the postgres image, when its volume is empty: an owner and a database for each server.
-- The passwords come from the variables of the container, so that none is on a command line.
\set ON_ERROR_STOP on
\getenv prefect_password PREFECT_PASSWORD
\getenv mlflow_password MLFLOW_PASSWORD
SET log_min_error_statement = panic;
SET password_encryption = 'scram-sha-256';
CREATE ROLE prefect LOGIN PASSWORD :'prefect_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE prefect OWNER prefect;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE prefect, mlflow FROM PUBLIC;
